"""Random state: saving, restoring and warnings."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from gclip_mm.compat import LOADS_WEIGHTS_ONLY
from gclip_mm.engine.checkpoints.rng_state import capture_rng_state, restore_rng_state
from gclip_mm.engine.hooks import rng_state_hook
from tests.engine.toy_task import RULES, run_toy

RULE = RULES['NormClip']


@pytest.fixture
def warnings(monkeypatch) -> list[str]:
    seen: list[str] = []
    monkeypatch.setattr(rng_state_hook, 'print_log', lambda message, **_: seen.append(message))
    return seen


def draw() -> list:
    # Gaussian numbers are drawn in pairs; the state holds the second one of a pair.
    return [
        random.random(),
        random.gauss(0, 1),
        np.random.rand(),
        np.random.randn(),
        torch.rand(3).tolist(),
        torch.randn(3).tolist(),
    ]


def test_state_survives_a_file(tmp_path):
    draw()
    torch.save(capture_rng_state(), tmp_path / 'state.pth')
    expected = [draw() for _ in range(3)]
    restore_rng_state(torch.load(tmp_path / 'state.pth', weights_only=LOADS_WEIGHTS_ONLY))
    assert [draw() for _ in range(3)] == expected


def test_checkpoint_holds_the_state_at_the_time_of_saving(tmp_path, monkeypatch):
    states = []
    before_save = rng_state_hook.GClipRNGStateHook.before_save_checkpoint

    def watched(self, runner, checkpoint):
        before_save(self, runner, checkpoint)
        states.append(torch.get_rng_state())

    monkeypatch.setattr(rng_state_hook.GClipRNGStateHook, 'before_save_checkpoint', watched)
    run_toy(tmp_path, RULE, train_cfg__max_iters=5)
    saved = torch.load(tmp_path / 'iter_5.pth', weights_only=LOADS_WEIGHTS_ONLY)['gclip_rng']
    assert len(saved['states']) == 1 and saved['sampler_seed'] == 0
    assert torch.equal(saved['states'][0]['torch'], states[-1])


def weights(runner) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in runner.model.parameters()])


@pytest.mark.parametrize('with_hook', [True, False])
def test_toy_task_needs_the_hook_to_resume(tmp_path, with_hook):
    """Without the hook the resumed run differs; otherwise these tests would prove nothing."""
    hooks = dict(custom_hooks=[dict(type='GClipRNGStateHook')] if with_hook else [])
    straight = weights(run_toy(tmp_path / 'a', RULE, **hooks))
    run_toy(tmp_path / 'b', RULE, **hooks, train_cfg__max_iters=10)
    resumed = weights(run_toy(tmp_path / 'b', RULE, **hooks, resume=True))
    assert torch.equal(straight, resumed) == with_hook


def test_validation_leaves_the_state_unchanged(tmp_path):
    common = dict(train_cfg__max_iters=12)
    validation = dict(
        val_dataloader=dict(
            batch_size=4,
            num_workers=0,
            dataset=dict(type='RandomData'),
            sampler=dict(type='DefaultSampler', shuffle=False),
            collate_fn=dict(type='pseudo_collate'),
        ),
        val_cfg=dict(type='ValLoop'),
        val_evaluator=dict(type='MeanError'),
        train_cfg__val_interval=3,
    )
    without = weights(run_toy(tmp_path / 'a', RULE, **common))
    with_it = weights(run_toy(tmp_path / 'b', RULE, **common, **validation))
    assert torch.equal(without, with_it)


def test_load_from_restores_no_random_state(tmp_path, warnings):
    run_toy(tmp_path / 'a', RULE, train_cfg__max_iters=5)
    random.seed(0)
    fresh = weights(run_toy(tmp_path / 'b', RULE, load_from=str(tmp_path / 'a' / 'iter_5.pth')))
    again = weights(run_toy(tmp_path / 'c', RULE, load_from=str(tmp_path / 'a' / 'iter_5.pth')))
    assert torch.equal(fresh, again)
    assert not warnings


def test_checkpoint_without_random_state_is_warned_of(tmp_path, warnings):
    run_toy(tmp_path, RULE, custom_hooks=[], train_cfg__max_iters=5)
    run_toy(tmp_path, RULE, resume=True)
    assert any('holds no random state' in text for text in warnings)


def test_other_number_of_processes_is_warned_of(tmp_path, warnings):
    run_toy(tmp_path, RULE, train_cfg__max_iters=5)
    path = tmp_path / 'iter_5.pth'
    checkpoint = torch.load(path, weights_only=LOADS_WEIGHTS_ONLY)
    checkpoint['gclip_rng']['states'] *= 2
    torch.save(checkpoint, path)
    run_toy(tmp_path, RULE, resume=True)
    assert any('states of 2 processes, this run has 1' in text for text in warnings)


EPOCHS = dict(
    train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=2, _delete_=True),
    train_dataloader__sampler__type='DefaultSampler',
)


def test_resume_within_an_epoch_is_warned_of(tmp_path, warnings):
    saving = dict(
        default_hooks__checkpoint__interval=7, default_hooks__checkpoint__max_keep_ckpts=-1
    )
    run_toy(tmp_path, RULE, **EPOCHS, **saving)
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'iter_7.pth'))
    assert not warnings
    run_toy(tmp_path, RULE, **EPOCHS, **saving, resume=True)
    assert any('middle of epoch 2' in text for text in warnings)


def test_persistent_workers_are_warned_of(tmp_path, warnings):
    workers = dict(train_dataloader__num_workers=1, train_dataloader__persistent_workers=True)
    run_toy(tmp_path, RULE, **EPOCHS, **workers)
    assert any('persistent_workers' in text for text in warnings)


TWO = """
import os, sys
sys.path[:0] = [{folder!r}, {root!r}]
import torch
from toy_task import RULES, toy_config
from mmengine.runner import Runner
from gclip_mm.engine.dist import set_up_cpu_distributed
torch.set_num_threads(1)
def train(name, **changes):
    cfg = toy_config(os.path.join({out!r}, name), RULES['NormClip'], launcher='pytorch',
                     randomness=dict(seed=0, diff_rank_seed=True), **changes)
    set_up_cpu_distributed(cfg)
    Runner.from_cfg(cfg).train()
train('straight')
train('cut', train_cfg__max_iters=10)
train('cut', resume=True)
"""


def test_each_process_gets_its_own_state_back(tmp_path):
    script = tmp_path / 'two.py'
    folder = Path(__file__).parents[1]
    script.write_text(
        TWO.format(folder=str(folder), root=str(folder.parents[1]), out=str(tmp_path))
    )
    command = [sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node=2']
    command += ['--master_port=0', '--rdzv_backend=c10d', '--rdzv_endpoint=localhost:0']
    done = subprocess.run([*command, str(script)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    straight, resumed = (
        torch.load(tmp_path / name / 'iter_24.pth', weights_only=LOADS_WEIGHTS_ONLY)
        for name in ('straight', 'cut')
    )
    states = straight['gclip_rng']['states']
    assert len(states) == 2
    assert not torch.equal(states[0]['torch'], states[1]['torch'])
    for key, value in straight['state_dict'].items():
        assert torch.equal(value, resumed['state_dict'][key]), key
    for mine, theirs in zip(states, resumed['gclip_rng']['states'], strict=True):
        assert torch.equal(mine['torch'], theirs['torch'])
        assert torch.equal(mine['numpy']['key'], theirs['numpy']['key'])
