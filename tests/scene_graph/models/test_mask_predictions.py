"""A detector with a mask head gives the masks of the objects in the graph."""

from __future__ import annotations

import copy

import torch
from mmdet.registry import MODELS
from mmengine.structures import InstanceData


def masked_model(config_of):
    cfg = config_of(protocol='sgdet')
    cfg.roi_head.mask_roi_extractor = copy.deepcopy(cfg.roi_head.bbox_roi_extractor)
    cfg.roi_head.mask_head = dict(
        type='FCNMaskHead',
        num_convs=1,
        in_channels=16,
        conv_out_channels=8,
        num_classes=10,
        loss_mask=dict(type='CrossEntropyLoss', use_mask=True),
    )
    cfg.train_cfg.rcnn.mask_size = 10
    cfg.test_cfg.rcnn.mask_thr_binary = 0.5
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
