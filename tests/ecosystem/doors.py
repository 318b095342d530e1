"""Trains a tiny model of another package through every door of MMEngine, by ``gclip train``."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch
from mmengine.logging import MessageHub

from gclip_mm.cli.train import main
from gclip_mm.compat import LOADS_WEIGHTS_ONLY

BOUND = 0.05
#: The end of every config: 20 steps, a checkpoint after 10, every step in the log. What a model or
#: a pipeline draws at random goes on after a resume as it would have without one.
RUN = """
custom_imports = dict(imports=['gclip_mm'], allow_failed_imports=False)
train_cfg = dict(type='IterBasedTrainLoop', max_iters=20, val_interval=1000)
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=1),
    checkpoint=dict(type='CheckpointHook', interval=10, by_epoch=False),
)
log_processor = dict(by_epoch=False)
randomness = dict(seed=3)
custom_hooks = [dict(type='GClipRNGStateHook')]
"""
RULE = f"clip_grad=dict(type='NormClip', max_norm={BOUND})"


def needs(*modules: str) -> None:
    """Skip a test file one of whose modules is not there.

    A torchvision that was built for another PyTorch raises a RuntimeError.
    """
    try:
        for module in modules:
            importlib.import_module(module)
    except (ImportError, RuntimeError) as error:
        pytest.skip(f'run by `make ecosystem` ({error})', allow_module_level=True)


def door_config(door: str, members: tuple[str, ...], constructor: str | None) -> str:
    """The end of a config that says how the gradients are clipped.

    Args:
        door: ``wrapper``, ``hook`` or ``flag``.
        members: the parts of the model that have an optimizer each; empty for one optimizer.
        constructor: the package's constructor of the optimizer wrapper.
    """
    if door == 'wrapper':
        wrapper = f"type='GClipOptimWrapper', {RULE}, "
    else:
        wrapper = "type='OptimWrapper', "
    wrapper += "optimizer=dict(type='SGD', lr=0.05, momentum=0.9)"
    if members:
        wrapper = ', '.join(f'{name}=dict({wrapper})' for name in members)
    if constructor:
        wrapper += f', constructor={constructor!r}'
    hook = f"custom_hooks += [dict(type='GClipHook', {RULE})]\n" if door == 'hook' else ''
    return f'optim_wrapper = dict({wrapper})\n{hook}'


class Doors:
    """The tests of a package. A module derives ``TestDoors`` and has a fixture ``settings``."""

    #: The text of a config without optimizer and schedule comes from the fixture ``settings``.
    members: tuple[str, ...] = ()
    constructor: str | None = None

    def train(self, settings: str, work: Path, door: str, *flags: str) -> dict[str, torch.Tensor]:
        """Train by the command, with further flags; returns the last weights."""
        config = work.parent / f'{door}.py'
        config.write_text(settings + RUN + door_config(door, self.members, self.constructor))
        clip = ['--clip', f'type=NormClip,max_norm={BOUND}'] if door == 'flag' else []
        # A second runner in one process would continue the counts of the first.
        MessageHub._instance_dict.clear()
        assert main([str(config), '--work-dir', str(work), *clip, *flags]) == 0
        checkpoint = torch.load(work / 'iter_20.pth', weights_only=LOADS_WEIGHTS_ONLY)
        return checkpoint['state_dict']

    @pytest.fixture(scope='class')
    def by_wrapper(self, settings, tmp_path_factory):
        """The work dir of a whole run through the wrapper, and its last weights."""
        work = tmp_path_factory.mktemp('wrapper') / 'run'
        return work, self.train(settings, work, 'wrapper')

    def test_every_step_of_20_is_clipped(self, by_wrapper):
        check_clipped(by_wrapper[0], self.members)

    @pytest.mark.parametrize('door', ['hook', 'flag'])
    def test_doors_give_bit_identical_weights(self, door, settings, by_wrapper, tmp_path):
        assert same(self.train(settings, tmp_path / 'run', door), by_wrapper[1])
        check_clipped(tmp_path / 'run', self.members)

    @pytest.mark.parametrize('door', ['wrapper', 'hook', 'flag'])
    def test_resumed_run_is_bit_identical(self, door, settings, by_wrapper, tmp_path):
        """From the tenth step of the run through the wrapper, whose checkpoint every door reads."""
        first, whole = by_wrapper
        work = tmp_path / 'run'
        work.mkdir()
        (work / 'iter_10.pth').write_bytes((first / 'iter_10.pth').read_bytes())
        (work / 'last_checkpoint').write_text(str(work / 'iter_10.pth'))
        assert same(self.train(settings, work, door, '--resume'), whole)
        assert len(lines_of(work)) == 10, 'it did not begin from the start'


def lines_of(work: Path) -> list[dict]:
    """The steps in the newest run's scalars.json."""
    path = max(work.glob('*/vis_data/scalars.json'), key=lambda p: p.stat().st_mtime_ns)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line for line in lines if any(key.endswith('grad_norm_post') for key in line)]


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def check_clipped(work: Path, members: tuple[str, ...]) -> None:
    """Every one of 20 steps of every optimizer was clipped to the bound."""
    lines = lines_of(work)
    assert len(lines) == 20
    for prefix in [f'{name}.' for name in members] or ['']:
        norms = [line[f'{prefix}grad_norm'] for line in lines]
        assert min(norms) > BOUND, f'the bound is not tight: {prefix} {norms}'
        assert all(abs(line[f'{prefix}grad_norm_post'] / BOUND - 1) < 1e-4 for line in lines)
