"""Relations on the features of any detector can be learned, and boxes with them."""

import copy

import pytest
import torch
from mmdet.registry import MODELS

from tests.scene_graph.models.conftest import some_counts
from tests.scene_graph.models.test_overfit import recall, train
from tests.scene_graph.models.tiny_detectors import wrapped

CLIP = dict(type='NormClip', max_norm=2.0)


def build(name, context, **options):
    torch.manual_seed(0)
    model = MODELS.build(copy.deepcopy(wrapped(name, context, **options)))
    model.init_weights()
    model.relation_head.frequency_bias.set_counts(*some_counts())
    return model


def train_until(model, batch, predict, wanted, rounds):
    """Train in rounds of 20 iterations until R@20 is above ``wanted``; return it."""
    for _ in range(rounds):
        train(model, batch, CLIP, 20)
        found = recall(predict(model, batch))
        if found > wanted:
            break
    return found


@pytest.mark.parametrize('context', ['RNNContext', 'TransformerContext'])
@pytest.mark.parametrize('name', ['RetinaNet', 'YOLOX', 'DINO', 'Mask2Former'])
def test_detector_overfits_relations_of_eight_pictures(make_batch, predict, name, context):
    model, batch = build(name, context), make_batch(range(8))
    # The counts of the bias are random, so the initial recall is low.
    assert recall(predict(model, batch)) < 0.6
    assert train_until(model, batch, predict, 0.95, rounds=4) > 0.95


def test_detector_overfits_boxes_and_relations(make_batch, predict):
    """SGDet: the detector learns to find the objects while the heads learn their relations."""
    model = build('RetinaNet', 'RNNContext', protocol='sgdet', detector_loss=True)
    batch = make_batch(range(3))
    assert recall(predict(model, batch)) < 0.1
    assert train_until(model, batch, predict, 0.9, rounds=5) > 0.9
