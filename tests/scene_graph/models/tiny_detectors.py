"""Nine detectors of MMDetection, small enough for tests, and their wrapped configs."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config, ConfigDict
from mmengine.structures import PixelData
from pycocotools import mask as coco_mask

from gclip_mm.datasets.shape_scenes.sampling import draw_sample
from tests.configs.tiny import CONFIGS, load_tiny
from tests.scene_graph.models.conftest import SIZE, model_cfg

_MODELS = Path(__file__).parents[3] / 'configs' / '_base_' / 'models'
_CLASSES = 10
_GRAPH_KEYS = ('relation_head', 'scene_head', 'protocol', 'freeze_detector', 'detector_loss')


def faster_rcnn() -> ConfigDict:
    """The detector of the tests' SceneGraphRCNN."""
    cfg = model_cfg()
    for key in _GRAPH_KEYS:
        del cfg[key]
    del cfg['test_cfg']['relation']
    cfg['type'] = 'FasterRCNN'
    return cfg


def cascade() -> ConfigDict:
    cfg = faster_rcnn()
    cfg['type'] = 'CascadeRCNN'
    head = cfg['roi_head']['bbox_head']
    cfg['roi_head'].update(
        type='CascadeRoIHead', num_stages=2, stage_loss_weights=[1, 1], bbox_head=[head, head]
    )
    cfg['train_cfg']['rcnn'] = [cfg['train_cfg']['rcnn']] * 2
    return cfg


def panoptic_fpn() -> ConfigDict:
    cfg = faster_rcnn()
    cfg['type'] = 'PanopticFPN'
    cfg['data_preprocessor'].update(pad_mask=True, pad_seg=True, pad_size_divisor=32)
    counts = dict(num_things_classes=_CLASSES, num_stuff_classes=2)
    cfg['semantic_head'] = dict(
        type='PanopticFPNHead',
        in_channels=16,
        inner_channels=16,
        start_level=0,
        end_level=4,
        norm_cfg=dict(type='GN', num_groups=4),
        loss_seg=dict(type='CrossEntropyLoss', ignore_index=255, loss_weight=0.5),
        **counts,
    )
    cfg['panoptic_fusion_head'] = dict(type='HeuristicFusionHead', **counts)
    cfg['test_cfg']['panoptic'] = dict(mask_overlap=0.5, stuff_area_limit=4096)
    return cfg


@cache
def _shipped(name: str) -> ConfigDict:
    cfg = Config.fromfile(str(_MODELS / f'{name}.py')).model
    if 'bbox_head' in cfg:
        cfg.bbox_head.num_classes = _CLASSES
        if 'num_queries' in cfg:
            cfg.update(num_queries=20, test_cfg=dict(max_per_img=20))
    else:
        cfg.panoptic_head.num_things_classes = _CLASSES
        cfg.panoptic_head.loss_cls.class_weight = [1.0] * _CLASSES + [0.1]
        cfg.panoptic_fusion_head.num_things_classes = _CLASSES
    return cfg


@cache
def _stock(recipe: str) -> ConfigDict:
    cfg = load_tiny(CONFIGS / recipe).model
    cfg.bbox_head.num_classes = _CLASSES
    cfg.data_preprocessor.pad_size_divisor = 32
    if 'num_queries' in cfg:
        cfg.test_cfg.max_per_img = cfg.num_queries
    return cfg


#: Detectors that train on masks.
WITH_MASKS = ('Mask2Former', 'PanopticFPN')

#: For each detector: function that creates its config; channels and strides of the maps for the RoI
#: extractor, None for the detector's own; neck that creates such maps, if needed.
DETECTORS: dict[str, tuple[Any, Any, Any]] = {
    'FasterRCNN': (faster_rcnn, None, None),
    'CascadeRCNN': (cascade, None, None),
    'PanopticFPN': (panoptic_fpn, None, None),
    'RetinaNet': (lambda: _shipped('retinanet_r18_tiny'), (64, [8, 16, 32]), None),
    'YOLOX': (lambda: _shipped('yolox_tiny'), (64, [8, 16, 32]), None),
    'RTMDet': (
        lambda: _stock('rtmdet/rtmdet_tiny_norm_8xb32-300e_coco.py'),
        (16, [8, 16, 32]),
        None,
    ),
    'DETR': (lambda: _stock('detr/detr_r50_norm_8xb2-150e_coco.py'), (32, [32]), None),
    'DINO': (
        lambda: _shipped('dino_r18_tiny'),
        (16, [16, 32]),
        dict(type='ChannelMapper', in_channels=[256, 256], out_channels=16, kernel_size=1),
    ),
    'Mask2Former': (
        lambda: _shipped('mask2former_r18_tiny'),
        (16, [4, 8, 16, 32]),
        dict(type='FPN', in_channels=[16, 32, 64, 128], out_channels=16, num_outs=4),
    ),
}


def detector_cfg(name: str) -> ConfigDict:
    """Config of one of the detectors, to change at will."""
    return copy.deepcopy(DETECTORS[name][0]())


def wrapped(name: str, context: str = 'IdentityContext', **options: Any) -> ConfigDict:
    """Config of a SceneGraphDetector with one of the detectors."""
    _, maps, neck = DETECTORS[name]
    graph = model_cfg(context, **options)
    cfg = ConfigDict(type='SceneGraphDetector', detector=detector_cfg(name))
    cfg.update({key: graph[key] for key in _GRAPH_KEYS})
    cfg.test_cfg = dict(relation=dict(max_objects=10))
    channels = 16
    if maps is not None:
        channels, strides = maps
        cfg.roi_extractor = dict(
            type='SingleRoIExtractor',
            roi_layer=dict(type='RoIAlign', output_size=5, sampling_ratio=1),
            out_channels=channels,
            featmap_strides=strides,
            finest_scale=28,
        )
    if neck is not None:
        cfg.graph_neck = neck
    cfg.scene_head.update(in_channels=channels, in_levels=(0, -1))
    return cfg


def with_masks(item: dict, index: int) -> dict:
    """Add the masks and semantic segmentation that some detectors train on."""
    width, height = SIZE
    drawn = draw_sample(0, 'train', index, SIZE)
    masks = [
        coco_mask.decode(coco_mask.frPyObjects(obj['segmentation'], height, width))
        for obj in drawn.objects
    ]
    sample = item['data_samples']
    sample.gt_instances.masks = BitmapMasks(np.stack(masks), height, width)
    seg = torch.full((1, height, width), _CLASSES, dtype=torch.uint8)
    sample.gt_sem_seg = PixelData(sem_seg=seg)
    return copy.deepcopy(item)
