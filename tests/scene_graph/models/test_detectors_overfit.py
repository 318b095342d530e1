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


# Both contexts on each detector, in SGDet: results/scene_graph/overfit.py.
@pytest.mark.parametrize(
    ('name', 'context'),
    [
        ('RetinaNet', 'RNNContext'),
        ('YOLOX', 'TransformerContext'),
        ('DINO', 'RNNContext'),
        ('Mask2Former', 'TransformerContext'),
    ],
)
def test_detector_overfits_relations_of_eight_pictures(make_batch, predict, name, context):
    model, pictures = build(name, context), range(8)
    before = recall(predict(model, make_batch(pictures)))
    train(model, make_batch(pictures), CLIP, 60)
    after = recall(predict(model, make_batch(pictures)))
    assert before < 0.6  # the counts of the bias are random, so the initial recall is low
    assert after > 0.95


def test_detector_overfits_boxes_and_relations(make_batch, predict):
    """SGDet: the detector learns to find the objects while the heads learn their relations."""
    model = build('RetinaNet', 'RNNContext', protocol='sgdet', detector_loss=True)
    assert recall(predict(model, make_batch(range(4)))) < 0.1
    train(model, make_batch(range(4)), CLIP, 80)
    assert recall(predict(model, make_batch(range(4)))) > 0.9
