"""A detector with masks gives those of the objects in the graph."""

from __future__ import annotations

import copy

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.structures import InstanceData

from tests.scene_graph.models.conftest import sample_of, some_counts
from tests.scene_graph.models.tiny_detectors import DETECTORS, WITH_MASKS, with_masks, wrapped


def add_mask_head(cfg):
    """Give the config of a two-stage detector a mask head."""
    extractor = cfg.roi_head.bbox_roi_extractor
    cfg.roi_head.mask_roi_extractor = copy.deepcopy(extractor)
    cfg.roi_head.mask_head = dict(
        type='FCNMaskHead',
        num_convs=1,
        in_channels=16,
        conv_out_channels=8,
        num_classes=10,
        loss_mask=dict(type='CrossEntropyLoss', use_mask=True),
    )
    stages = cfg.train_cfg.rcnn
    for stage in stages if isinstance(stages, list) else [stages]:
        stage.mask_size = 10
    cfg.test_cfg.rcnn.mask_thr_binary = 0.5


def masked_model(config_of):
    cfg = config_of(protocol='sgdet')
    add_mask_head(cfg)
    torch.manual_seed(0)
    model = MODELS.build(cfg)
    model.relation_head.frequency_bias = None
    return model


def test_masks_are_those_of_the_mask_head(config_of, make_batch, predict):
    model = masked_model(config_of)
    batch = make_batch(range(2))
    samples = predict(model, batch)
    inputs = model.data_preprocessor(copy.deepcopy(batch))['inputs']
    with torch.no_grad():
        x = model.extract_feat(inputs)
        for i, sample in enumerate(samples):
            found = sample.pred_instances
            assert len(found) and found.masks.shape == (len(found), *sample.ori_shape)
            level = tuple(f[i : i + 1] for f in x)
            boxes = InstanceData(bboxes=found.bboxes, labels=found.labels)
            expected = model.roi_head.predict_mask(level, [sample.metainfo], [boxes], rescale=True)[
                0
            ]
            # NMS after refinement may have changed the label of some.
            same = (expected.masks == found.masks).flatten(1).all(dim=1)
            assert same.float().mean() > 0.5


def test_masks_are_in_pixels_of_the_original_image(config_of, make_batch, predict):
    model = masked_model(config_of)
    batch = make_batch([0])
    small = predict(model, batch)[0].pred_instances
    sample = batch['data_samples'][0]
    height, width = sample.img_shape
    sample.set_metainfo(dict(ori_shape=(2 * height, 2 * width), scale_factor=(0.5, 0.5)))
    large = predict(model, batch)[0].pred_instances
    assert large.masks.shape == (len(small), 2 * height, 2 * width)
    torch.testing.assert_close(large.bboxes, 2 * small.bboxes)
    assert ((large.masks[:, ::2, ::2] == small.masks).float().mean()) > 0.9


def built(name, masks=False):
    cfg = wrapped(name, protocol='sgdet')
    if name == 'Mask2Former':
        cfg.detector.test_cfg.instance_on = True
    if masks and name in ('PanopticFPN', 'CascadeRCNN'):
        add_mask_head(cfg.detector)
    torch.manual_seed(0)
    model = MODELS.build(cfg)
    model.init_weights()
    model.relation_head.frequency_bias.set_counts(*some_counts())
    return model


def two_samples(name):
    items = [sample_of(i) for i in range(2)]
    if name in WITH_MASKS:
        items = [with_masks(item, i) for i, item in enumerate(items)]
    return dict(
        inputs=[item['inputs'] for item in items],
        data_samples=[item['data_samples'] for item in items],
    )


def detections(model, batch):
    """What the detector predicts on its own, without the graph."""
    data = model.data_preprocessor(copy.deepcopy(batch))
    with torch.no_grad():
        return model.detector.predict(data['inputs'], data['data_samples'], rescale=True)


@pytest.mark.parametrize('name', ['Mask2Former', 'CascadeRCNN'])
def test_masks_are_those_that_the_detector_predicts(predict, name):
    model, batch = built(name, masks=True).eval(), two_samples(name)
    alone = detections(model, batch)
    for sample, expected in zip(predict(model, batch), alone, strict=True):
        found, own = sample.pred_instances, expected.pred_instances
        assert len(found) and found.masks.shape == (len(found), *sample.ori_shape)
        assert found.masks.dtype == torch.bool and found.masks.any()
        for box, mask in zip(found.bboxes, found.masks, strict=True):
            same = (own.bboxes == box).all(dim=1)
            assert any(torch.equal(mask, other) for other in own.masks[same].bool())


def test_masks_of_panoptic_fpn_are_those_of_its_mask_head(predict):
    model, batch = built('PanopticFPN', masks=True).eval(), two_samples('PanopticFPN')
    samples = predict(model, batch)
    inputs = model.data_preprocessor(copy.deepcopy(batch))['inputs']
    with torch.no_grad():
        x = model.detector.extract_feat(inputs)
        for i, sample in enumerate(samples):
            found = sample.pred_instances
            assert len(found) and found.masks.shape == (len(found), *sample.ori_shape)
            level = tuple(f[i : i + 1] for f in x)
            boxes = InstanceData(bboxes=found.bboxes, labels=found.labels)
            head = model.detector.roi_head
            expected = head.predict_mask(level, [sample.metainfo], [boxes], rescale=True)[0]
            same = (expected.masks == found.masks).flatten(1).all(dim=1)
            assert same.float().mean() > 0.5


@pytest.mark.parametrize('name', sorted(set(DETECTORS) - set(WITH_MASKS)))
def test_a_detector_of_boxes_gives_no_masks(predict, name):
    samples = predict(built(name).eval(), two_samples(name))
    assert all('masks' not in sample.pred_instances for sample in samples)


def test_given_boxes_and_training_do_without_masks(predict):
    model, batch = built('Mask2Former').eval(), two_samples('Mask2Former')
    data = model.data_preprocessor(copy.deepcopy(batch))
    with torch.no_grad():
        maps = model._detector_maps(data['inputs'])
        found = model.relations.detect(maps, data['inputs'], data['data_samples'])
        assert all('masks' in result for result in found)
        found = model.train().relations.detect(maps, data['inputs'], data['data_samples'])
    assert all(len(result) and 'masks' not in result for result in found)
