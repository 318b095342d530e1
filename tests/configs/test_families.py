"""Every detector family has recipes and trains with value, norm and adaptive clipping."""

from __future__ import annotations

import copy
import math
import re
from functools import cache

import pytest
import yaml
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper

import gclip_mm
from gclip_mm.clipping.gradients.names import describe_params
from gclip_mm.engine.configs import find_config
from tests.configs.tiny import (
    CONFIGS,
    FAMILIES,
    NUM_CLASSES,
    batch,
    build_tiny,
    load_tiny,
    recipes,
)

STEPS = 20
FOLDERS = [*FAMILIES, 'digits']
CASES = [path for family in FAMILIES for path in recipes(family)]
AGC_CASES = [path for path in CASES if '_agc' in path.stem]

#: The modules that output class scores, taken from the source of mmdet's heads.
CLASSIFIERS = {
    'rcnn': {'roi_head.bbox_head.fc_cls'},
    'fast_rcnn': {'roi_head.bbox_head.fc_cls'},
    'faster_rcnn': {'roi_head.bbox_head.fc_cls'},
    'mask_rcnn': {'roi_head.bbox_head.fc_cls', 'roi_head.mask_head.conv_logits'},
    'cascade_rcnn': {f'roi_head.bbox_head.{i}.fc_cls' for i in range(3)},
    'retinanet': {'bbox_head.retina_cls'},
    'fcos': {'bbox_head.conv_cls'},
    'ssd': {f'bbox_head.cls_convs.{i}.0' for i in range(6)},
    'yolov3': {f'bbox_head.convs_pred.{i}' for i in range(3)},
    'yolox': {f'bbox_head.multi_level_conv_cls.{i}' for i in range(3)},
    'rtmdet': {f'bbox_head.rtm_cls.{i}' for i in range(3)},
    'detr': {'bbox_head.fc_cls'},
    'deformable_detr': {'bbox_head.cls_branches.0'},  # one, shared by the layers
    'dino': {f'bbox_head.cls_branches.{i}' for i in range(3)},  # two layers and the encoder
}


@cache
def load(path) -> Config:
    """A cached config; callers must not change it."""
    return Config.fromfile(str(path))


@pytest.fixture(autouse=True, scope='module')
def _registered():
    register_all_modules()


@pytest.mark.parametrize('path', CASES, ids=lambda path: path.stem)
def test_twenty_clipped_steps_lower_the_loss(path):
    family = path.parent.name
    cfg = load_tiny(path)
    model = build_tiny(cfg)
    model.train()
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    wrapper.initialize_count_status(model, 0, STEPS)
    data = batch(
        FAMILIES[family]['size'],
        proposals=cfg.model.type in ('RCNN', 'FastRCNN'),
        masks=cfg.model.type == 'MaskRCNN',
    )
    losses, clipped = [], 0
    for _ in range(STEPS):
        log = model.train_step(copy.deepcopy(data), wrapper)
        losses.append(log['loss'].item())
        stats = wrapper.engine.stats()
        assert stats['nonfinite'] == 0
        clipped += stats['clip_fraction'] > 0
    assert all(map(math.isfinite, losses)), losses
    assert sum(losses[-3:]) < 0.95 * sum(losses[:3]), losses
    # A norm of 35 or 10 clips only spikes; the other rules must have clipped.
    if cfg.optim_wrapper.clip_grad.type != 'NormClip':
        assert clipped


@pytest.mark.parametrize('path', AGC_CASES, ids=lambda path: path.stem)
def test_agc_excludes_only_the_final_classifier(path):
    family = path.parent.name
    cfg = load_tiny(path)
    model = build_tiny(cfg)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    router = gclip_mm.clipping.parse_clip_grad(cfg.optim_wrapper.clip_grad).router
    infos = describe_params(
        [p for group in wrapper.optimizer.param_groups for p in group['params']], model
    )
    left_out = {
        info.name.rpartition('.')[0]: info.param
        for info, route in zip(infos, router.assign(infos), strict=True)
        if type(router.routes[route].clipper).__name__ != 'AGC'
    }
    assert set(left_out) == CLASSIFIERS[family]
    for name, param in left_out.items():
        # Per anchor: classes; classes and background; in YOLOv3 classes, objectness and box.
        sizes = (NUM_CLASSES, NUM_CLASSES + 1, NUM_CLASSES + 5)
        assert any(len(param) % size == 0 for size in sizes), name


@pytest.mark.parametrize('family', FAMILIES)
def test_family_has_value_norm_and_agc_recipes(family):
    rules = {load(p).optim_wrapper.clip_grad.type for p in recipes(family)}
    assert rules == {'ValueClip', 'NormClip', 'AGC'}


@pytest.mark.parametrize('path', CASES, ids=lambda path: path.stem)
def test_optimizer_equals_that_of_stock_config(path):
    cfg, base = load(path), _stock(path)
    if path.parent.name == 'rcnn' and 'vgg16' in path.stem:
        assert cfg.optim_wrapper.optimizer.lr == base.optimizer.lr / 10
        return
    assert cfg.optim_wrapper.optimizer == base.optimizer
    assert cfg.optim_wrapper.get('paramwise_cfg') == base.get('paramwise_cfg')
    assert cfg.optim_wrapper.type == 'GClipOptimWrapper'


def _stock(path):
    """The optim_wrapper of the stock config at the end of the ``_base_`` chain."""
    while True:
        base = re.search(r"^_base_ = '([^']+)'", path.read_text(), flags=re.MULTILINE).group(1)
        if base.startswith('mmdet::'):
            return load(find_config(base)).optim_wrapper
        path = path.parent / base


@pytest.mark.parametrize('family', FOLDERS)
def test_readme_and_metafile_list_every_config(family):
    folder = CONFIGS / family
    configs = {path.name for path in folder.glob('*.py')}
    readme = (folder / 'README.md').read_text()
    assert set(re.findall(r'\]\(([\w.-]+\.py)\)', readme)) == configs
    for link in re.findall(r'\]\((?!http)([^)]+)\)', readme):
        assert (folder / link).exists(), link
    for path in re.findall(r'(?<![\w/])(?:configs|tests|tools)/[\w/.-]+\.py', readme):
        assert (CONFIGS.parent / path).is_file(), path
    metafile = yaml.safe_load((folder / 'metafile.yml').read_text())
    assert {model['Config'] for model in metafile['Models']} == {
        f'configs/{family}/{name}' for name in configs
    }
    collections = {collection['Name'] for collection in metafile['Collections']}
    assert {model['In Collection'] for model in metafile['Models']} == collections
