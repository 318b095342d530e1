"""Trains a tiny model of another package through every door of MMEngine, by ``gclip train``."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from mmengine.logging import MessageHub

from gclip_mm.cli.train import main
from gclip_mm.compat import LOADS_WEIGHTS_ONLY

BOUND = 0.05
#: The end of every config: 20 steps, a checkpoint after 10, every step in the log.
RUN = """
custom_imports = dict(imports=['gclip_mm'], allow_failed_imports=False)
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


def train(settings: str, work: Path, door: str, *flags: str) -> dict[str, torch.Tensor]:
    """Train by the command; returns the last weights.

    Args:
        settings: the text of a config without optimizer and schedule.
        work: the work dir.
        door: a key of ``DOORS``.
        *flags: further arguments of the command.
    """
    config = work.parent / f'{door}.py'
    config.write_text(settings + RUN + DOORS[door] + '\n')
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


def check_clipped(work: Path) -> None:
    """Every one of 20 steps was clipped to the bound."""
    lines = [line for line in scalars(work) if 'grad_norm' in line]
    assert len(lines) == 20
    assert all(line['grad_norm'] > BOUND for line in lines), 'the bound is tight'
    assert all(abs(line['grad_norm_post'] / BOUND - 1) < 1e-4 for line in lines)


def resume_halfway(settings: str, first: Path, again: Path) -> dict[str, torch.Tensor]:
    """Go on from the tenth step of a run in another work dir; returns the last weights."""
    again.mkdir()
    (again / 'iter_10.pth').write_bytes((first / 'iter_10.pth').read_bytes())
    (again / 'last_checkpoint').write_text(str(again / 'iter_10.pth'))
    return train(settings, again, 'wrapper', '--resume')
