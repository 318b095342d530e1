"""The recipe of each family, reduced so that twenty steps take seconds on one CPU core.

A recipe is loaded unchanged, so that users get the same stock base, clipping and names. Channels,
layers, queries and samples are then reduced and pretrained weights dropped. The rest of the code
path stays the same.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmdet.models.backbones import Darknet
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config
from mmengine.structures import InstanceData
from pycocotools import mask as coco_mask
from torch import nn

from gclip_mm.datasets.shape_scenes import CLASSES
from gclip_mm.datasets.shape_scenes.sampling import draw_sample

CONFIGS = Path(__file__).parents[2] / 'configs'
NUM_CLASSES = len(CLASSES)


@MODELS.register_module(name='TinyDarknet', force=True)
class TinyDarknet(Darknet):
    """Darknet-53's layout with one block per stage and an eighth of the channels."""

    arch_settings = {53: ((1, 1, 1, 1, 1), ((32, 16), (16, 16), (16, 32), (32, 64), (64, 128)))}


def load_tiny(path: Path) -> Config:
    """A recipe with a reduced model and a learning rate for it."""
    cfg = Config.fromfile(str(path))
    family = FAMILIES[path.parent.name]
    model = cfg.model
    model.data_preprocessor.pop('batch_augments', None)
    if model.data_preprocessor.get('pad_mask'):
        model.data_preprocessor.pad_mask = True
    family['shrink'](model)
    _drop_pretrained(model)
    _set_everywhere(model, 'num_classes', NUM_CLASSES)
    optimizer = cfg.optim_wrapper.optimizer
    optimizer.lr = family['lr']
    if cfg.optim_wrapper.clip_grad.type == 'AGC':
        # With SGD, AGC bounds a step to lr * clip_factor of the weight. At a rate that is safe
        # without AGC, twenty such steps change almost nothing, so use a larger rate.
        optimizer.lr *= family['agc_lr_mult']
    return cfg


def _drop_pretrained(node: Any) -> None:
    if isinstance(node, dict):
        init = node.get('init_cfg')
        if isinstance(init, dict) and init.get('type') == 'Pretrained':
            node['init_cfg'] = None
        for key, value in node.items():
            if key == 'norm_cfg' and isinstance(value, dict) and value.get('type') == 'SyncBN':
                value['type'] = 'BN'  # SyncBN needs a process group
            _drop_pretrained(value)
    elif isinstance(node, list | tuple):
        for value in node:
            _drop_pretrained(value)


def _set_everywhere(node: Any, key: str, value: Any) -> None:
    if isinstance(node, dict):
        if key in node:
            node[key] = value
        for child in node.values():
            _set_everywhere(child, key, value)
    elif isinstance(node, list | tuple):
        for child in node:
            _set_everywhere(child, key, value)


def _resnet(model: Any) -> None:
    model.backbone.update(
        depth=18,
        base_channels=8,
        frozen_stages=-1,
        norm_eval=False,
        norm_cfg=dict(type='BN', requires_grad=True),
    )


def _fpn(model: Any) -> None:
    _resnet(model)
    model.neck.update(in_channels=[8, 16, 32, 64], out_channels=16)


def _two_stage(model: Any) -> None:
    if model.backbone.type == 'VGG':
        model.backbone.update(depth=11, width=0.125, with_bn=True, bn_eval=False)
        channels = 64
    else:
        _fpn(model)
        channels = 16
    roi_head = model.roi_head
    roi_head.bbox_roi_extractor.out_channels = channels
    for head in _as_list(roi_head.bbox_head):
        head.update(in_channels=channels, fc_out_channels=32)
    if 'mask_head' in roi_head:
        roi_head.mask_roi_extractor.out_channels = channels
        roi_head.mask_head.update(in_channels=channels, conv_out_channels=16, num_convs=1)
    for stage in _as_list(model.train_cfg.rcnn):
        stage.sampler.num = 32
    if 'rpn_head' in model:
        model.rpn_head.update(in_channels=channels, feat_channels=16)
        model.rpn_head.anchor_generator.scales = [4]
        model.train_cfg.rpn.sampler.num = 64
        model.train_cfg.rpn_proposal.update(nms_pre=100, max_per_img=50)


def _as_list(node: Any) -> list:
    return list(node) if isinstance(node, list | tuple) else [node]


def _rcnn(model: Any) -> None:
    model.roi_head.bbox_roi_extractor.update(output_size=32, context=2)
    if model.backbone.type == 'VGG':
        model.backbone.update(depth=11, width=0.125, with_bn=True, bn_eval=False)
        model.roi_head.bbox_head.update(in_channels=64, fc_out_channels=32, roi_feat_size=1)
    else:
        _resnet(model)
        model.roi_head.bbox_head.update(in_channels=64, roi_feat_size=1)
    model.train_cfg.rcnn.sampler.num = 16


def _dense(model: Any) -> None:
    _fpn(model)
    model.bbox_head.update(in_channels=16, feat_channels=16, stacked_convs=1)


def _fcos(model: Any) -> None:
    _dense(model)
    model.neck.out_channels = 32  # the head's GroupNorm has 32 groups
    model.bbox_head.update(in_channels=32, feat_channels=32)


def _ssd(model: Any) -> None:
    model.backbone.update(type='SlimSSDVGG', width=0.0625)
    model.neck.update(in_channels=(32, 64), out_channels=(32, 64, 32, 16, 16, 16))
    model.bbox_head.in_channels = (32, 64, 32, 16, 16, 16)


def _yolov3(model: Any) -> None:
    model.backbone.type = 'TinyDarknet'
    model.neck.update(in_channels=[128, 64, 32], out_channels=[64, 32, 16])
    model.bbox_head.update(in_channels=[64, 32, 16], out_channels=[32, 32, 32])


def _yolox(model: Any) -> None:
    model.backbone.update(widen_factor=0.125, deepen_factor=0.33)
    model.neck.update(in_channels=[32, 64, 128], out_channels=16)
    model.bbox_head.update(in_channels=16, feat_channels=16, stacked_convs=1)


def _rtmdet(model: Any) -> None:
    model.backbone.update(widen_factor=0.125)
    model.neck.update(in_channels=[32, 64, 128], out_channels=16)
    model.bbox_head.update(in_channels=16, feat_channels=16, stacked_convs=1)


def _transformer(model: Any, width: int = 32) -> None:
    _resnet(model)
    outs = model.backbone.out_indices
    model.neck.update(in_channels=[8 * 2**i for i in outs], out_channels=width)
    _set_everywhere(model, 'embed_dims', width)
    _set_everywhere(model, 'feedforward_channels', 64)
    _set_everywhere(model, 'num_heads', 4)
    model.positional_encoding.num_feats = width // 2
    for part in (model.encoder, model.decoder):
        part.num_layers = 2
        attentions = [key for key in part.layer_cfg if key.endswith('attn_cfg')]
        for key in attentions:
            part.layer_cfg[key].setdefault('embed_dims', width)
            part.layer_cfg[key].setdefault('num_heads', 4)
    model.num_queries = 20
    if 'dn_cfg' in model:
        model.dn_cfg.group_cfg.num_dn_queries = 10


def _deformable(model: Any) -> None:
    _transformer(model)
    model.bbox_head.embed_dims = 32


def _dino(model: Any) -> None:
    # The decoder encodes each box coordinate by 128 numbers, independent of the config.
    _transformer(model, width=256)


def _entry(
    shrink: Callable[[Any], None], lr: float, agc_lr_mult: float = 5.0, size: int = 96
) -> dict[str, Any]:
    return dict(shrink=shrink, lr=lr, agc_lr_mult=agc_lr_mult, size=size)


#: Per family (a folder of configs/): function that shrinks the model, learning rate, factor of the
#: rate for AGC, side of the images in pixels.
FAMILIES: dict[str, dict[str, Any]] = {
    'rcnn': _entry(_rcnn, 0.02),
    'fast_rcnn': _entry(_two_stage, 0.02),
    'faster_rcnn': _entry(_two_stage, 0.02),
    'mask_rcnn': _entry(_two_stage, 0.02),
    'cascade_rcnn': _entry(_two_stage, 0.02),
    'retinanet': _entry(_dense, 0.02),
    'fcos': _entry(_fcos, 0.01),
    'ssd': _entry(_ssd, 0.002, size=300),
    'yolov3': _entry(_yolov3, 0.001),
    'yolox': _entry(_yolox, 0.01),
    'rtmdet': _entry(_rtmdet, 0.004, agc_lr_mult=1.0),
    'detr': _entry(_transformer, 1e-3, agc_lr_mult=1.0),
    'deformable_detr': _entry(_deformable, 1e-3, agc_lr_mult=1.0),
    'dino': _entry(_dino, 1e-3, agc_lr_mult=1.0),
}


def build_tiny(cfg: Config) -> nn.Module:
    """The model of :func:`load_tiny` with newly initialised weights."""
    torch.manual_seed(0)
    model = MODELS.build(copy.deepcopy(cfg.model))
    model.init_weights()
    if cfg.model.type == 'RTMDet':
        # Untrained, the boxes have no extent: no object is assigned to a box, and the loss is 0.
        for conv in model.bbox_head.rtm_reg:
            nn.init.constant_(conv.bias, 2.0)
    return model


def recipes(family: str) -> list[Path]:
    """The clipped configs of a family, including variants such as VGG."""
    return sorted(
        path
        for path in (CONFIGS / family).glob('*_coco.py')
        if Config.fromfile(str(path)).optim_wrapper.get('clip_grad')
    )


def batch(
    size: int, count: int = 2, proposals: bool = False, masks: bool = False
) -> dict[str, Any]:
    """Input of ``model.train_step``: ShapeScenes pictures with boxes and labels, on request also
    with proposals and masks.
    """
    pairs = [_picture(index, size) for index in range(count)]
    data = copy.deepcopy(dict(inputs=[p[0] for p in pairs], data_samples=[p[1] for p in pairs]))
    if not masks:
        for sample in data['data_samples']:
            del sample.gt_instances.masks
    if proposals:
        for index, sample in enumerate(data['data_samples']):
            sample.proposals = _proposals(sample.gt_instances.bboxes, size, seed=index)
    return data


@cache
def _picture(index: int, size: int) -> tuple[torch.Tensor, DetDataSample]:
    drawn = draw_sample(0, 'train', index, (size, size))
    boxes = torch.tensor([obj['bbox'] for obj in drawn.objects], dtype=torch.float32)
    boxes[:, 2:] += boxes[:, :2]
    labels = torch.tensor([obj['category_id'] - 1 for obj in drawn.objects])
    masks = np.stack(
        [
            coco_mask.decode(coco_mask.frPyObjects(obj['segmentation'], size, size))
            for obj in drawn.objects
        ]
    )
    sample = DetDataSample(
        metainfo=dict(
            img_id=index,
            img_path=f'{index:06d}.jpg',
            img_shape=(size, size),
            ori_shape=(size, size),
            batch_input_shape=(size, size),
            pad_shape=(size, size),
            scale_factor=(1.0, 1.0),
            flip=False,
        )
    )
    sample.gt_instances = InstanceData(
        bboxes=boxes, labels=labels, masks=BitmapMasks(masks, size, size)
    )
    sample.ignored_instances = InstanceData(
        bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long)
    )
    return torch.from_numpy(drawn.image.transpose(2, 0, 1).copy()), sample


def _proposals(boxes: torch.Tensor, size: int, seed: int) -> InstanceData:
    """Jittered copies of the boxes, like those of a proposal method, and random boxes."""
    generator = torch.Generator().manual_seed(seed)
    near = boxes.repeat(6, 1)
    near = near + torch.randn(near.shape, generator=generator) * 0.04 * size
    corners = torch.rand(30, 2, generator=generator) * size * 0.7
    far = torch.cat([corners, corners + size * 0.3], dim=1)
    found = torch.cat([near, far]).clamp(0, size)
    found = found[((found[:, 2:] - found[:, :2]) > 2).all(dim=1)]
    return InstanceData(bboxes=found, scores=torch.ones(len(found)))
