"""A tiny model of MMSegmentation trains on drawn data, clipped through every door of MMEngine.

Needs MMSegmentation, which ``make ecosystem`` puts beside the environment.
"""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.logging import MessageHub

pytest.importorskip('mmseg.models', reason='run by `make ecosystem`')

from gclip_mm.cli.train import main
from gclip_mm.compat import LOADS_WEIGHTS_ONLY

BOUND = 0.05
CONFIG = """
default_scope = 'mmseg'
custom_imports = dict(imports=['gclip_mm'], allow_failed_imports=False)
pipeline = [
    dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='BaseSegDataset',
        data_root={root!r},
        data_prefix=dict(img_path='images', seg_map_path='masks'),
        img_suffix='.png',
        metainfo=dict(classes=('ground', 'square')),
        pipeline=pipeline,
    ),
)
norm = dict(type='BN')
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor', mean=[128] * 3, std=[64] * 3, size=(48, 48)),
    backbone=dict(
        type='ResNet', depth=18, base_channels=8, norm_cfg=norm, num_stages=4, out_indices=(3,)),
    decode_head=dict(
        type='FCNHead', in_channels=64, channels=8, num_convs=1, dropout_ratio=0, num_classes=2,
        norm_cfg=norm, loss_decode=dict(type='CrossEntropyLoss')),
)
train_cfg = dict(type='IterBasedTrainLoop', max_iters=20, val_interval=1000)
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=1),
    checkpoint=dict(type='CheckpointHook', interval=10, by_epoch=False),
)
log_processor = dict(by_epoch=False)
randomness = dict(seed=3)
"""
RULE = f"clip_grad=dict(type='NormClip', max_norm={BOUND})"
OPTIMIZER = "optimizer=dict(type='SGD', lr=0.05, momentum=0.9)"
DOORS = {
    'wrapper': f"optim_wrapper = dict(type='GClipOptimWrapper', {OPTIMIZER}, {RULE})",
    'hook': f"optim_wrapper = dict(type='OptimWrapper', {OPTIMIZER})\n"
    f"custom_hooks = [dict(type='GClipHook', {RULE})]",
    'flag': f"optim_wrapper = dict(type='OptimWrapper', {OPTIMIZER})",
}


@pytest.fixture(scope='module')
def root(tmp_path_factory) -> Path:
    """Eight images of 48 x 48 with a bright square, and their masks."""
    folder = tmp_path_factory.mktemp('drawn')
    random = np.random.default_rng(0)
    for name in ('images', 'masks'):
        (folder / name).mkdir()
    for i in range(8):
        image = random.integers(0, 80, (48, 48, 3), dtype=np.uint8)
        mask = np.zeros((48, 48), np.uint8)
        x, y = random.integers(0, 28, 2)
        image[y : y + 20, x : x + 20] += 120
        mask[y : y + 20, x : x + 20] = 1
        cv2.imwrite(str(folder / 'images' / f'{i}.png'), image)
        cv2.imwrite(str(folder / 'masks' / f'{i}.png'), mask)
    return folder


def train(root: Path, work: Path, door: str, *flags: str) -> dict[str, torch.Tensor]:
    """Train by the command; returns the last weights."""
    config = work.parent / f'{door}.py'
    config.write_text(CONFIG.format(root=str(root)) + DOORS[door] + '\n')
    clip = ['--clip', f'type=NormClip,max_norm={BOUND}'] if door == 'flag' else []
    # A second runner in one process would continue the counts of the first.
    MessageHub._instance_dict.clear()
    assert main([str(config), '--work-dir', str(work), *clip, *flags]) == 0
    checkpoint = torch.load(work / 'iter_20.pth', weights_only=LOADS_WEIGHTS_ONLY)
    return checkpoint['state_dict']


def scalars(work: Path) -> list[dict]:
    """The lines of the newest run's scalars.json."""
    path = max(work.glob('*/vis_data/scalars.json'), key=lambda p: p.stat().st_mtime_ns)
    return [json.loads(line) for line in path.read_text().splitlines()]


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope='module')
def by_wrapper(root, tmp_path_factory):
    work = tmp_path_factory.mktemp('wrapper') / 'run'
    return work, train(root, work, 'wrapper')


def test_every_step_of_20_is_clipped(by_wrapper):
    lines = [line for line in scalars(by_wrapper[0]) if 'grad_norm' in line]
    assert len(lines) == 20
    assert all(line['grad_norm'] > BOUND for line in lines), 'the bound is tight'
    assert all(line['grad_norm_post'] == pytest.approx(BOUND, rel=1e-4) for line in lines)


@pytest.mark.parametrize('door', ['hook', 'flag'])
def test_doors_give_bit_identical_weights(door, root, by_wrapper, tmp_path):
    assert same(train(root, tmp_path / 'run', door), by_wrapper[1])


def test_resumed_run_is_bit_identical(root, by_wrapper, tmp_path):
    work, whole = by_wrapper
    again = tmp_path / 'run'
    again.mkdir()
    (again / 'iter_10.pth').write_bytes((work / 'iter_10.pth').read_bytes())
    (again / 'last_checkpoint').write_text(str(again / 'iter_10.pth'))
    assert same(train(root, again, 'wrapper', '--resume'), whole)
