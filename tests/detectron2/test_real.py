"""Detectron2's own scripts and models; only where its source is at hand (``conftest.py``)."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from gclip_mm.clipping import GradClipEngine
from gclip_mm.detectron2 import clip
from tests.detectron2.source import SOURCE

if SOURCE is None:
    pytest.skip('needs the source of Detectron2', allow_module_level=True)

import cv2
from detectron2.config import get_cfg
from detectron2.engine import SimpleTrainer
from detectron2.modeling import build_model
from detectron2.solver import build_optimizer
from detectron2.structures import Boxes, Instances

# Each test of a script starts it from its imports on.
pytestmark = pytest.mark.timeout(1200)

ROOT = Path(__file__).resolve().parents[2]
RULE = 'type=AGC,clip_factor=0.01,max_consecutive_skips=3'
TINY = {
    'MODEL.DEVICE': 'cpu',
    'MODEL.META_ARCHITECTURE': 'GeneralizedRCNN',
    'MODEL.BACKBONE.NAME': 'build_resnet_fpn_backbone',
    'MODEL.BACKBONE.FREEZE_AT': 0,
    'MODEL.RESNETS.DEPTH': 18,
    'MODEL.RESNETS.RES2_OUT_CHANNELS': 64,
    'MODEL.RESNETS.NORM': 'BN',
    'MODEL.RESNETS.OUT_FEATURES': ['res2', 'res3', 'res4', 'res5'],
    'MODEL.FPN.IN_FEATURES': ['res2', 'res3', 'res4', 'res5'],
    'MODEL.FPN.OUT_CHANNELS': 16,
    'MODEL.ANCHOR_GENERATOR.SIZES': [[8], [16], [32], [64], [128]],
    'MODEL.RPN.IN_FEATURES': ['p2', 'p3', 'p4', 'p5', 'p6'],
    'MODEL.RPN.PRE_NMS_TOPK_TRAIN': 50,
    'MODEL.RPN.POST_NMS_TOPK_TRAIN': 20,
    'MODEL.ROI_HEADS.NAME': 'StandardROIHeads',
    'MODEL.ROI_HEADS.IN_FEATURES': ['p2', 'p3', 'p4', 'p5'],
    'MODEL.ROI_HEADS.NUM_CLASSES': 1,
    'MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE': 8,
    'MODEL.ROI_BOX_HEAD.NAME': 'FastRCNNConvFCHead',
    'MODEL.ROI_BOX_HEAD.NUM_FC': 1,
    'MODEL.ROI_BOX_HEAD.FC_DIM': 16,
    'MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION': 3,
    'MODEL.WEIGHTS': '',
    'SOLVER.IMS_PER_BATCH': 2,
    'SOLVER.BASE_LR': 0.01,
    'SOLVER.WARMUP_ITERS': 0,
    'SOLVER.STEPS': [],
    'INPUT.MIN_SIZE_TRAIN': [64],
    'INPUT.MIN_SIZE_TEST': 64,
    'DATALOADER.NUM_WORKERS': 0,
    'DATASETS.TRAIN': ['drawn'],
    'DATASETS.TEST': [],
    'SEED': 1,
}


def options(**changes):
    items = {**TINY, **{name.replace('__', '.'): value for name, value in changes.items()}}
    return [str(word) for item in items.items() for word in item]


# -- the model, in this process --------------------------------------------------------------------
def sample(seed, fault=None):
    """One drawn picture of 64 x 64 with one box, as the data loader gives it."""
    made = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (3, 64, 64), generator=made).float()
    instances = Instances((64, 64))
    if fault == 'infinite pixel':
        image[0, 5, 5] = float('inf')
    instances.gt_boxes = Boxes(torch.tensor([[10.0, 12.0, 30.0, 40.0]]))
    instances.gt_classes = torch.tensor([0])
    return [{'image': image, 'instances': instances, 'height': 64, 'width': 64}]


def rcnn(**changes):
    torch.manual_seed(0)
    cfg = get_cfg()
    cfg.merge_from_list(options(**changes))
    return cfg, build_model(cfg)


def train(model, cfg, data, rule):
    optimizer = build_optimizer(cfg, model)
    trainer = SimpleTrainer(model, data, clip(optimizer, rule, model))
    torch.manual_seed(1)
    trainer.train(0, len(data))
    return optimizer


def test_rpn_that_raises_is_left_out_with_its_buffers():
    cfg, model = rcnn()
    before = {}

    def look(module, data):
        # What is left is the beginning of the second iteration.
        before.update({name: value.clone() for name, value in model.state_dict().items()})

    model.register_forward_pre_hook(look)
    optimizer = train(model, cfg, [sample(0), sample(1, 'infinite pixel')], RULE)
    engine = GradClipEngine.on(optimizer)
    assert engine.steps == 2 and engine.last_skipped is True
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert any('running_mean' in name for name in before)


def test_rpn_that_raises_ends_the_run_without_the_limit():
    cfg, model = rcnn()
    with pytest.raises(FloatingPointError, match='Predicted boxes or scores'):
        train(model, cfg, [sample(0), sample(1, 'infinite pixel')], 'type=AGC')


def test_invalid_boxes_of_the_model_still_raise():
    """The boxes that the first stage of a cascade predicts are NaN in the second iteration."""
    cfg, model = rcnn(
        MODEL__ROI_HEADS__NAME='CascadeROIHeads', MODEL__ROI_BOX_HEAD__CLS_AGNOSTIC_BBOX_REG=True
    )
    seen = []

    def spoil(module, data):
        if seen:
            torch.nn.init.constant_(module.roi_heads.box_predictor[0].bbox_pred.bias, math.nan)
        seen.append(data)

    model.register_forward_pre_hook(spoil)
    with pytest.raises(AssertionError, match='Box tensor contains infinite or NaN'):
        train(model, cfg, [sample(0), sample(1)], RULE)
    assert len(seen) == 2


# -- Detectron2's scripts --------------------------------------------------------------------------
@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
    """A folder with four pictures, a module that registers them, and configs."""
    folder = tmp_path_factory.mktemp('drawn')
    made = np.random.default_rng(0)
    for i in range(4):
        picture = made.integers(0, 100, (64, 64, 3), dtype=np.uint8)
        picture[12:40, 10:30] += 150
        cv2.imwrite(str(folder / f'{i}.png'), picture)
    (folder / 'register.py').write_text(
        f"""
from detectron2.data import DatasetCatalog, MetadataCatalog

def load():
    box = dict(bbox=[10, 12, 30, 40], bbox_mode=0, category_id=0)
    return [
        dict(file_name='{folder}/%d.png' % i, image_id=i, height=64, width=64, annotations=[box])
        for i in range(4)
    ]

DatasetCatalog.register('drawn', load)
MetadataCatalog.get('drawn').set(thing_classes=['box'])
"""
    )
    (folder / 'lazy.py').write_text(
        f"""
import torch
from detectron2.config import LazyCall, get_cfg
from detectron2.modeling import build_model
from detectron2.solver import get_default_optimizer_params
from fvcore.common.param_scheduler import MultiStepParamScheduler
from gclip_mm.detectron2 import lazy
from tests.detectron2.real_parts import loader, model

model = LazyCall(model)(words={options()!r})
optimizer = LazyCall(torch.optim.AdamW)(
    params=LazyCall(get_default_optimizer_params)(base_lr='${{..lr}}', weight_decay_norm=0.0),
    lr=1e-3,
)
optimizer = lazy(optimizer, type='Auto')
lr_multiplier = LazyCall(MultiStepParamScheduler)(values=[1.0], milestones=[100])
dataloader = dict(train=LazyCall(loader)(words={options()!r}))
train = dict(
    output_dir='', init_checkpoint='', max_iter=21, amp=dict(enabled=False), eval_period=0,
    ddp=dict(broadcast_buffers=False, device_ids=None), log_period=20, device='cpu',
    checkpointer=dict(period=100, max_to_keep=1), seed=1,
)
"""
    )
    return folder


def run(script, folder, flags, *arguments):
    command = [sys.executable, '-m', 'gclip_mm.detectron2', *flags]
    command += ['--import', str(folder / 'register.py'), str(script), *arguments]
    environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=1000
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def metrics(folder):
    return [json.loads(line) for line in (folder / 'metrics.json').read_text().splitlines()]


def test_train_net_is_clipped_and_resumed(drawn, tmp_path):
    config = tmp_path / 'empty.yaml'
    config.write_text('VERSION: 2\n')
    script = SOURCE / 'tools' / 'train_net.py'
    flags = ['--clip', 'type=AutoClip,percentile=30']
    words = ['--config-file', str(config), *options(OUTPUT_DIR=tmp_path, SOLVER__MAX_ITER=21)]
    log = run(script, drawn, flags, *words)
    assert 'Gradients are clipped' in log and 'clipped nothing' not in log
    (line,) = (line for line in metrics(tmp_path) if 'gclip/grad_norm' in line)
    assert line['iteration'] == 19 and line['gclip/grad_norm'] > 0 and 'total_loss' in line
    state = torch.load(tmp_path / 'model_final.pth')
    assert state['trainer']['_trainer']['optimizer']['gclip']['steps'] == 21
    # Resumed for two more iterations.
    words = [word if word != '21' else '23' for word in words]
    run(script, drawn, flags, '--resume', *words)
    state = torch.load(tmp_path / 'model_final.pth')
    assert state['trainer']['_trainer']['optimizer']['gclip']['steps'] == 23


def test_key_of_the_config_in_train_net(drawn, tmp_path):
    config = tmp_path / 'rule.yaml'
    config.write_text('VERSION: 2\nSOLVER:\n  GCLIP: type=AGC,clip_factor=0.01\n')
    words = options(OUTPUT_DIR=tmp_path, SOLVER__MAX_ITER=2)
    script = SOURCE / 'tools' / 'train_net.py'
    log = run(script, drawn, [], '--config-file', str(config), *words)
    assert "Gradients are clipped: {'type': 'AGC', 'clip_factor': 0.01}" in log


def test_lazy_config_on_two_spawned_ranks(drawn, tmp_path):
    script = SOURCE / 'tools' / 'lazyconfig_train_net.py'
    words = ['--config-file', str(drawn / 'lazy.py'), '--num-gpus', '2', '--dist-url', 'auto']
    log = run(script, drawn, [], *words, f'train.output_dir={tmp_path}')
    assert "Gradients are clipped: {'type': 'Auto'}" in log and 'clipped nothing' not in log
    assert any('gclip/grad_norm' in line for line in metrics(tmp_path))
    assert (tmp_path / 'config.yaml').exists() and not (tmp_path / 'config.yaml.pkl').exists()


def test_flag_clips_lazy_config_on_two_spawned_ranks(drawn, tmp_path):
    plain = tmp_path / 'plain.py'
    text = (drawn / 'lazy.py').read_text()
    plain.write_text(text.replace("optimizer = lazy(optimizer, type='Auto')\n", ''))
    words = ['--config-file', str(plain), '--num-gpus', '2', '--dist-url', 'auto']
    script = SOURCE / 'tools' / 'lazyconfig_train_net.py'
    output = [f'train.output_dir={tmp_path}', 'train.max_iter=3']
    log = run(script, drawn, ['--clip', RULE], *words, *output)
    assert log.count("Gradients are clipped: {'type': 'AGC'") >= 1


def test_plain_train_net_with_one_line(drawn, tmp_path):
    stock = (SOURCE / 'tools' / 'plain_train_net.py').read_text()
    line = '    optimizer = build_optimizer(cfg, model)\n'
    assert line in stock
    edited = stock.replace(
        line,
        f'{line}    from gclip_mm.detectron2 import clip\n'
        "    optimizer = clip(optimizer, 'type=AutoClip', model)\n",
    )
    script = tmp_path / 'plain.py'
    script.write_text(edited)
    config = tmp_path / 'empty.yaml'
    config.write_text('VERSION: 2\n')
    words = options(OUTPUT_DIR=tmp_path, SOLVER__MAX_ITER=20)
    run(script, drawn, [], '--config-file', str(config), *words)
    assert any('gclip/grad_norm' in line for line in metrics(tmp_path))
    assert torch.load(tmp_path / 'model_final.pth')['optimizer']['gclip']['steps'] == 20
