"""A resumed optimizer keeps the kernels that its config asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.optim import OptimWrapperDict
from mmengine.runner import FlexibleRunner, Runner
from torch import nn

from gclip_mm.engine import GClipOptimWrapper
from gclip_mm.engine.resumed import KERNEL_SETTINGS, keep_kernel_settings
from tests.clipping.cases import equal
from tests.engine.door_task import weights
from tests.engine.left_out_task import NORM, build_run

ADAM = dict(type='AdamW', lr=0.01)
SAVING = dict(
    default_hooks__checkpoint=dict(type='CheckpointHook', interval=6, by_epoch=False),
    resumable=True,
)


def resumed(
    work_dir: Path, door: str, first: dict[str, Any], second: dict[str, Any], **changes: Any
) -> Runner:
    """Six iterations with one optimizer, and six more with another."""
    short = dict(train_cfg=dict(type='IterBasedTrainLoop', max_iters=6))
    build_run(work_dir / 'a', door, optimizer=first, **{**SAVING, **short, **changes}).train()
    path = str(work_dir / 'a' / 'iter_6.pth')
    runner = build_run(
        work_dir / 'b', door, optimizer=second, load_from=path, resume=True, **SAVING, **changes
    )
    runner.train()
    return runner


@pytest.mark.parametrize('kind', [Runner, FlexibleRunner])
@pytest.mark.parametrize('scaler', [False, True], ids=['float32', 'scaler'])
@pytest.mark.parametrize('door', ['wrapper', 'hook'])
def test_fused_survives_a_checkpoint_without_it(door, scaler, kind, tmp_path):
    fused = dict(ADAM, fused=True)
    runner = resumed(tmp_path, door, ADAM, fused, scaler=scaler, kind=kind)
    groups = runner.optim_wrapper.param_groups
    assert [group['fused'] for group in groups] == [True] * len(groups)
    assert runner.iter == 12
    if scaler:
        return
    whole = build_run(tmp_path / 'whole', door, optimizer=fused, kind=kind, **SAVING)
    whole.train()
    # Before the batch norm the bias has no gradient but rounding errors.
    for key in ('head.weight', 'head.bias'):
        torch.testing.assert_close(weights(runner)[key], weights(whole)[key], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('scaler', [False, True], ids=['float32', 'scaler'])
@pytest.mark.parametrize('door', ['wrapper', 'hook'])
def test_fused_of_a_checkpoint_is_not_taken_over(door, scaler, tmp_path):
    runner = resumed(tmp_path, door, dict(ADAM, fused=True), ADAM, scaler=scaler)
    assert not any(group['fused'] for group in runner.optim_wrapper.param_groups)
    assert runner.iter == 12


@pytest.mark.parametrize('key', KERNEL_SETTINGS)
def test_every_kernel_setting_is_kept(key):
    model = nn.Linear(3, 2)
    saved = GClipOptimWrapper(torch.optim.AdamW(model.parameters()), clip_grad=dict(NORM))
    state = saved.state_dict()
    state['param_groups'][0][key] = None
    before = dict(state['param_groups'][0])
    wrapper = GClipOptimWrapper(
        torch.optim.AdamW(model.parameters(), lr=0.5, **{key: key != 'differentiable'}),
        clip_grad=dict(NORM),
    )
    wrapper.load_state_dict(state)
    (group,) = wrapper.param_groups
    assert group[key] is (key != 'differentiable')
    # What belongs to the training comes from the checkpoint.
    assert group['lr'] == before['lr'] == 1e-3
    assert state['param_groups'][0] == before


def test_members_of_a_dict_keep_their_own_settings():
    models = nn.ModuleDict(dict(a=nn.Linear(3, 2), b=nn.Linear(3, 2)))

    def build(fused: dict[str, bool]) -> OptimWrapperDict:
        members = {
            name: GClipOptimWrapper(
                torch.optim.AdamW(model.parameters(), fused=fused[name]), clip_grad=dict(NORM)
            )
            for name, model in models.items()
        }
        return OptimWrapperDict(**members)

    both = build(dict(a=True, b=False))
    both.load_state_dict(build(dict(a=False, b=True)).state_dict())
    assert both['a'].param_groups[0]['fused'] is True
    assert both['b'].param_groups[0]['fused'] is False


def test_state_of_other_groups_is_left_to_torch():
    optimizer = torch.optim.AdamW(nn.Linear(3, 2).parameters(), fused=True)
    state = optimizer.state_dict()
    state['param_groups'] *= 2
    assert keep_kernel_settings(optimizer, state) is state
    with pytest.raises(ValueError, match='different number of parameter groups'):
        GClipOptimWrapper(optimizer).load_state_dict(state)


def test_momentum_of_the_checkpoint_is_loaded():
    model = nn.Linear(3, 2)
    plain = GClipOptimWrapper(torch.optim.AdamW(model.parameters()), clip_grad=dict(NORM))
    plain.update_params(model(torch.ones(2, 3)).sum())
    fused = GClipOptimWrapper(
        torch.optim.AdamW(model.parameters(), fused=True), clip_grad=dict(NORM)
    )
    fused.load_state_dict(plain.state_dict())
    a, b = (w.optimizer.state_dict()['state'] for w in (plain, fused))
    assert all(equal(a[k], b[k]) for k in a) and a
