"""Hooks that average weights pass over the iterations whose step was left out."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from mmengine.hooks import EMAHook
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapperDict
from mmengine.registry import HOOKS, MODELS
from mmengine.runner import Runner
from torch import nn

from gclip_mm.engine import GClipOptimWrapper
from gclip_mm.engine.left_out import StepWatch
from tests.clipping.cases import equal
from tests.engine.door_task import DOORS
from tests.engine.left_out_task import (
    Snapshots,
    SpoiltNet,
    build_run,
    hook_of,
    on_device_only,
)

EMA = dict(type='EMAHook', momentum=0.1)
SNAPSHOTS = dict(type='Snapshots')


def train(*args: Any, ema: dict = EMA, **kwargs: Any) -> list[dict[str, torch.Tensor]]:
    """The averaged model after each iteration."""
    runner = build_run(*args, hooks=(ema, SNAPSHOTS), **kwargs)
    runner.train()
    return hook_of(runner, Snapshots).states


@pytest.mark.parametrize('update_buffers', [False, True])
@pytest.mark.parametrize('fused', [False, True], ids=['plain', 'fused'])
@pytest.mark.parametrize('door', DOORS)
def test_ema_is_unchanged_by_steps_left_out(door, fused, update_buffers, tmp_path):
    optimizer = dict(type='SGD', lr=0.02, momentum=0.9, fused=fused)
    ema = dict(EMA, update_buffers=update_buffers)
    states = train(tmp_path, door, bad=(1, 4, 5), ema=ema, optimizer=optimizer)
    assert int(states[0]['steps']) == 0
    for k in (4, 5):
        assert equal(states[k - 1], states[k - 2])
    assert int(states[-1]['steps']) == 12 - 3
    assert not equal(states[-1], states[-2])
    assert all(torch.isfinite(value).all() for value in states[-1].values())


@pytest.mark.parametrize('door', DOORS)
def test_ema_equals_stock_without_steps_left_out(door, tmp_path):
    stock = train(tmp_path / 'stock', 'stock')
    assert all(map(equal, train(tmp_path / 'ours', door), stock))


@pytest.mark.parametrize('ema_type', ['ExpMomentumEMA', 'MomentumAnnealingEMA'])
def test_every_kind_of_average_is_held(ema_type, tmp_path):
    if ema_type == 'ExpMomentumEMA':
        pytest.importorskip('mmdet.models')
        ema_type = 'mmdet.ExpMomentumEMA'
    states = train(tmp_path, bad=(4,), ema=dict(EMA, ema_type=ema_type))
    assert equal(states[3], states[2]) and int(states[-1]['steps']) == 11


@pytest.mark.parametrize('update_buffers', [False, True])
@pytest.mark.parametrize('door', DOORS)
def test_accumulated_step_left_out_undoes_its_averages(door, update_buffers, tmp_path):
    """The NaN comes in the second of three iterations, and the first is averaged already."""
    ema = dict(EMA, update_buffers=update_buffers)
    states = train(tmp_path, door, bad=(5,), ema=ema, wrapper=dict(accumulative_counts=3))
    assert equal(states[5], states[2])
    assert int(states[-1]['steps']) == 12 - 3
    assert all(torch.isfinite(value).all() for value in states[-1].values())


def test_accumulation_equals_stock_without_steps_left_out(tmp_path):
    accumulate = dict(wrapper=dict(accumulative_counts=3))
    stock = train(tmp_path / 'stock', 'stock', **accumulate)
    assert all(map(equal, train(tmp_path / 'ours', 'wrapper', **accumulate), stock))


def test_copies_before_the_average_starts_are_held(tmp_path):
    states = train(tmp_path, bad=(2,), ema=dict(EMA, begin_iter=6))
    assert equal(states[1], states[0]) and not equal(states[2], states[1])
    assert all(torch.isfinite(value).all() for value in states[1].values())


@pytest.mark.parametrize('door', DOORS)
def test_step_withheld_by_a_scaler_is_not_averaged(door, tmp_path):
    states = train(tmp_path, door, bad=(4,), scaler=True)
    assert equal(states[3], states[2]) and int(states[-1]['steps']) == 11


def test_step_that_only_the_device_knows_is_not_averaged(tmp_path, monkeypatch):
    optimizer = dict(type='SGD', lr=0.02, momentum=0.9, fused=True)
    on_device_only(monkeypatch)
    states = train(tmp_path, bad=(4,), optimizer=optimizer)
    assert equal(states[3], states[2]) and int(states[-1]['steps']) == 11


def test_ema_hook_subclass_is_held(tmp_path):
    @HOOKS.register_module(force=True)
    class LoudEMAHook(EMAHook):
        def after_train_iter(self, *args: Any, **kwargs: Any) -> None:
            super().after_train_iter(*args, **kwargs)

    states = train(tmp_path, bad=(4,), ema=dict(EMA, type='LoudEMAHook'))
    assert equal(states[3], states[2])


# -- MMDetection's mean teacher --------------------------------------------------------------------


@HOOKS.register_module()
class TeacherSnapshots(Snapshots):
    def watched(self, runner: Runner) -> nn.Module:
        return runner.model.teacher


@MODELS.register_module()
class TaughtNet(BaseModel):
    """A student, and its teacher, which the optimizer does not train."""

    def __init__(self, bad: tuple[int, ...] = ()) -> None:
        super().__init__()
        cfg = dict(type='SpoiltNet')
        self.student = MODELS.build(dict(cfg, bad=bad))
        self.teacher = MODELS.build(cfg).requires_grad_(False)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.student(*args, **kwargs)


@pytest.mark.parametrize('skip_buffer', [True, False])
@pytest.mark.parametrize('door', ['wrapper', 'hook'])
@pytest.mark.parametrize('counts', [1, 3])
def test_mean_teacher_is_unchanged_by_steps_left_out(door, skip_buffer, counts, tmp_path):
    pytest.importorskip('mmdet.engine.hooks')
    runner = build_run(
        tmp_path,
        door,
        model=dict(type='TaughtNet', bad=(5,)),
        wrapper=dict(accumulative_counts=counts),
        hooks=(
            dict(type='mmdet.MeanTeacherHook', momentum=0.1, skip_buffer=skip_buffer),
            dict(type='TeacherSnapshots'),
        ),
    )
    runner.train()
    states = hook_of(runner, TeacherSnapshots).states
    last, before = (5, 3) if counts == 3 else (4, 4)
    assert equal(states[last], states[before - 1])
    assert not equal(states[-1], states[last])
    assert all(torch.isfinite(value).all() for value in states[-1].values())


# -- several optimizers ----------------------------------------------------------------------------


def wrapper_of(model: nn.Module, clips: bool = True) -> GClipOptimWrapper:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return GClipOptimWrapper(optimizer, clip_grad=dict(max_norm=1.0) if clips else None)


def update(wrapper: GClipOptimWrapper, model: nn.Module, factor: float = 1.0) -> None:
    wrapper.update_params(model(torch.ones(2, 3)).sum() * factor)


def test_iteration_of_several_optimizers_counts_if_one_steps():
    models = [nn.Linear(3, 1) for _ in range(2)]
    a, b = map(wrapper_of, models)
    both, watch = OptimWrapperDict(a=a, b=b), StepWatch()
    nan = float('nan')
    assert watch(both) is None
    for factors, expected in (((1, 1), False), ((1, nan), False), ((nan, nan), True)):
        for wrapper, model, factor in zip((a, b), models, factors, strict=True):
            update(wrapper, model, factor)
        assert watch(both) is expected
        assert watch(both) is None
    update(b, models[1], nan)
    assert watch(both) is True
    # Two steps of one optimizer in one iteration.
    for factors, expected in (((1, nan), False), ((nan, nan), True)):
        for factor in factors:
            update(a, models[0], factor)
        assert watch(both) is expected


def test_optimizer_without_clipping_counts_as_stepped():
    models = [nn.Linear(3, 1) for _ in range(2)]
    clipped, plain = wrapper_of(models[0]), wrapper_of(models[1], clips=False)
    both, watch = OptimWrapperDict(a=clipped, b=plain), StepWatch()
    update(plain, models[1])
    assert watch(both) is None
    update(clipped, models[0], float('nan'))
    assert watch(both) is False


@MODELS.register_module(force=True)
class TwoSteps(SpoiltNet):
    """Steps twice in an iteration; ``bad`` counts the steps."""

    def train_step(self, data: Any, optim_wrapper: Any) -> dict[str, torch.Tensor]:
        data = self.data_preprocessor(data, True)
        for _ in range(2):
            with optim_wrapper.optim_context(self):
                loss, log = self.parse_losses(self(**data, mode='loss'))
            optim_wrapper.update_params(loss)
        return log


@pytest.mark.parametrize('on_device', [False, True])
def test_iteration_of_several_steps_counts_unless_all_are_left_out(
    on_device, tmp_path, monkeypatch
):
    if on_device:
        on_device_only(monkeypatch)
    # Both steps of iteration 4, the first of 6, the second of 8.
    model = dict(type='TwoSteps', bad=(7, 8, 11, 16))
    states = train(tmp_path, model=model, optimizer=dict(type='SGD', lr=0.02, fused=True))
    changed = [not equal(a, b) for a, b in itertools.pairwise(states)]
    assert [k for k, yes in enumerate(changed, start=2) if not yes] == [4]
