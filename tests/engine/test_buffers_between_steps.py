"""A step that is left out keeps what hooks have written to buffers between two steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from tests.engine.left_out_task import build_run, hook_of


@HOOKS.register_module()
class BufferWriter(Hook):
    """Writes to the running mean before training and after the iterations ``at``, from 1."""

    priority = 'LOWEST'

    def __init__(self, at: tuple[int, ...] = ()) -> None:
        self.at = at
        self.seen: list[float] = []

    def before_train(self, runner: Runner) -> None:
        runner.model.backbone[1].running_mean.fill_(7.0)

    def after_train_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        mean = runner.model.backbone[1].running_mean
        self.seen.append(float(mean[0]))
        if runner.iter + 1 in self.at:
            mean.fill_(9.0)


@pytest.mark.parametrize('fused', [False, True], ids=['plain', 'fused'])
@pytest.mark.parametrize('door', ['wrapper', 'hook'])
def test_skip_keeps_buffers_that_a_hook_has_written(door, fused, tmp_path):
    runner = build_run(
        tmp_path,
        door,
        bad=(1, 4),
        hooks=(dict(type='BufferWriter', at=(3,)),),
        optimizer=dict(type='SGD', lr=0.02, fused=fused),
    )
    runner.train()
    seen = hook_of(runner, BufferWriter).seen
    assert (seen[0], seen[3]) == (7.0, 9.0)
    assert torch.isfinite(torch.tensor(seen)).all() and seen[1] != 7.0


@pytest.mark.parametrize('door', ['wrapper', 'hook'])
def test_accumulated_skip_goes_back_to_the_first_of_its_iterations(door, tmp_path):
    runner = build_run(
        tmp_path,
        door,
        bad=(5,),
        hooks=(dict(type='BufferWriter', at=(3,)),),
        wrapper=dict(accumulative_counts=3),
    )
    runner.train()
    seen = hook_of(runner, BufferWriter).seen
    assert seen[5] == 9.0 and seen[3] != 9.0
