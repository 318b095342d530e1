"""GClipHook on the optimizer of a runner."""

import copy
import warnings

import pytest
import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from mmengine.runner import Runner

from gclip_mm import ClipConfigError, GClipHook, GClipOptimWrapper
from gclip_mm.clipping import GradClipEngine
from gclip_mm.compat import LOADS_WEIGHTS_ONLY
from tests.clipping.cases import equal
from tests.engine.door_task import door_config, history, run_door, weights

SGD = dict(type='SGD', lr=0.02, momentum=0.9)
NORM = dict(type='norm', max_norm=0.5)
STATEFUL = dict(type='AdaGC', warmup_steps=2, beta=0.9, rel=1.01)
#: Six iterations, and a checkpoint by MMEngine's hook at the end.
SAVING = dict(
    default_hooks__checkpoint=dict(type='CheckpointHook', interval=6, by_epoch=False),
    train_cfg=dict(type='IterBasedTrainLoop', max_iters=6),
)


@pytest.mark.parametrize(
    ('wrapper', 'name'),
    [
        (dict(type='OptimWrapper', clip_grad=dict(max_norm=35)), 'OptimWrapper'),
        (dict(type='GClipOptimWrapper', clip_grad=dict(max_norm=35)), 'GClipOptimWrapper'),
        # A rule without keys.
        (dict(type='GClipOptimWrapper', clip_grad=dict(type='AGC')), 'GClipOptimWrapper'),
    ],
)
def test_clipping_wrapper_is_refused(wrapper, name, tmp_path):
    with pytest.raises(ClipConfigError, match=f'the {name} clips already.*not both'):
        run_door('hook', tmp_path, NORM, SGD, wrapper=wrapper)


def test_clipped_optimizer_is_refused(tmp_path):
    cfg = door_config('hook', tmp_path, NORM, SGD)
    cfg.custom_hooks.insert(0, dict(type='AttachHook', clip_grad=NORM, priority='HIGHEST'))
    with pytest.raises(ClipConfigError, match='clips already'):
        Runner.from_cfg(cfg).train()


def test_invalid_clip_grad_is_refused_when_the_runner_is_built(tmp_path):
    for clip_grad, message in [
        (dict(type='AGCC'), 'unknown type'),
        ({}, 'empty dict'),
        (dict(max_norm=-1), 'max_norm'),
        (None, 'should be a dict with a rule'),
    ]:
        with pytest.raises(ClipConfigError, match=message):
            GClipHook(clip_grad)
    with pytest.raises(ClipConfigError, match=r"no 'type_': .* clip_grad=dict\(type_='AGC'\)"):
        GClipHook(type_='AGC')
    cfg = door_config('hook', tmp_path, dict(max_norm=1, exclude=['haed']), SGD)
    with pytest.raises(ClipConfigError, match=r"'haed' matches no.*'head'"):
        Runner.from_cfg(cfg).train()


def test_hook_copies_its_config():
    clip_grad = dict(type='AGC', exclude=['a'], nonfinite='zero')
    before = copy.deepcopy(clip_grad)
    hook = GClipHook(clip_grad)
    assert clip_grad == before
    clip_grad['exclude'].append('b')
    assert hook.clip_grad == before


def test_runner_that_only_tests_works_with_the_hook(tmp_path):
    """``tools/test.py`` uses the training config with its hooks."""
    changes = dict(
        val_cfg=dict(type='ValLoop'),
        val_dataloader=dict(
            batch_size=4,
            dataset=dict(type='RandomData'),
            sampler=dict(type='DefaultSampler', shuffle=False),
            collate_fn=dict(type='pseudo_collate'),
        ),
        val_evaluator=dict(type='MeanError'),
    )
    cfg = door_config('hook', tmp_path / 'a', NORM, SGD, **changes)
    metrics = Runner.from_cfg(cfg).val()
    assert metrics['loss'] > 0
    for key in ('train_cfg', 'train_dataloader', 'optim_wrapper', 'param_scheduler'):
        cfg[key] = None
    cfg.work_dir, cfg.experiment_name = str(tmp_path / 'b'), 'b'
    assert Runner.from_cfg(cfg).val() == metrics


def test_optimizer_is_clean_after_the_run(tmp_path):
    runner = run_door('hook', tmp_path, NORM, dict(SGD, fused=True))
    optimizer = runner.optim_wrapper.optimizer
    assert GradClipEngine.on(optimizer) is None
    assert not optimizer._optimizer_step_pre_hooks
    assert not hasattr(optimizer, 'grad_scale') and not hasattr(optimizer, 'found_inf')


def test_failed_run_may_be_started_again(tmp_path, monkeypatch):
    runner = Runner.from_cfg(door_config('hook', tmp_path, NORM, SGD))
    with monkeypatch.context() as patch:
        patch.setattr(type(runner.model), 'train_step', lambda *args, **kwargs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            runner.train()
    runner.train()
    assert len(history(runner, 'train/grad_norm')) == 12


@pytest.mark.parametrize('fused', [False, True])
@pytest.mark.parametrize(('first', 'second'), [('wrapper', 'hook'), ('hook', 'wrapper')])
def test_hook_and_wrapper_resume_each_other(first, second, fused, tmp_path):
    optimizer = dict(SGD, fused=fused)
    whole = run_door(second, tmp_path / 'whole', STATEFUL, optimizer, resumable=True)
    run_door(first, tmp_path / 'first', STATEFUL, optimizer, resumable=True, **SAVING)
    path = tmp_path / 'first' / 'iter_6.pth'
    checkpoint = torch.load(path, weights_only=LOADS_WEIGHTS_ONLY)
    assert checkpoint['optimizer']['gclip']['steps'] == 6
    again = run_door(
        second,
        tmp_path / 'second',
        STATEFUL,
        optimizer,
        resumable=True,
        load_from=str(path),
        resume=True,
    )
    for key in ('grad_norm', 'clip_threshold', 'lr'):
        assert history(again, f'train/{key}') == history(whole, f'train/{key}')
    assert equal(weights(again), weights(whole))


def test_load_from_does_not_restore_rule_state(tmp_path):
    run_door('hook', tmp_path / 'a', STATEFUL, SGD, **SAVING)
    path = str(tmp_path / 'a' / 'iter_6.pth')
    cfg = door_config('hook', tmp_path / 'b', STATEFUL, SGD, load_from=path, **SAVING)
    runner = Runner.from_cfg(cfg)
    runner.train()
    state = torch.load(tmp_path / 'b' / 'iter_6.pth', weights_only=LOADS_WEIGHTS_ONLY)['optimizer'][
        'gclip'
    ]
    assert state['steps'] == 6


def test_resume_refuses_checkpoint_of_another_rule(tmp_path):
    run_door('hook', tmp_path / 'a', STATEFUL, SGD, **SAVING)
    path = str(tmp_path / 'a' / 'iter_6.pth')
    for door in ('hook', 'wrapper'):
        with pytest.raises(ValueError, match=r"\['AdaGC'\].*this run has.*\['AutoClip'\]"):
            run_door(door, tmp_path / door, dict(type='AutoClip'), SGD, load_from=path, resume=True)
    # Stock MMEngine ignores the state.
    run_door('stock', tmp_path / 'c', None, SGD, load_from=path, resume=True)


@OPTIM_WRAPPERS.register_module(force=True)
class ByHandOptimWrapper(OptimWrapper):
    """Updates the parameters without the optimizer's ``step``."""

    def step(self, **kwargs):
        for p in self.optimizer.param_groups[0]['params']:
            p.data.sub_(p.grad, alpha=0.01)


def test_training_that_never_calls_the_step_of_the_optimizer_warns_at_its_end(tmp_path):
    with pytest.warns(UserWarning, match='SGD.step was never called while it was clipped'):
        run_door('hook', tmp_path, NORM, SGD, wrapper=dict(type='ByHandOptimWrapper'))


@OPTIM_WRAPPERS.register_module(force=True)
class ClippingByHandOptimWrapper(GClipOptimWrapper):
    """As above, with clipping of its own, in runs that are shorter than the warning's patience."""

    step = ByHandOptimWrapper.step


@pytest.mark.parametrize('max_iters', [1, 12])
def test_wrapper_warns_at_the_end_of_a_training_without_a_step(max_iters, tmp_path):
    wrapper = dict(type='ClippingByHandOptimWrapper', clip_grad=NORM)
    loop = dict(type='IterBasedTrainLoop', max_iters=max_iters)
    with pytest.warns(UserWarning, match='SGD.step was never called while it was clipped'):
        run_door('none', tmp_path, None, SGD, wrapper=wrapper, train_cfg=loop)


def test_wrapper_that_steps_does_not_warn_at_the_end(tmp_path):
    with warnings.catch_warnings():
        warnings.filterwarnings('error', message='.*never called')
        run_door('wrapper', tmp_path, NORM, SGD)
