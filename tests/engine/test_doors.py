"""The same run with wrapper, hook and attach, compared with stock MMEngine."""

import pytest
import torch
from mmengine.runner import Runner

from gclip_mm.clipping import LOG_KEYS
from tests.clipping.cases import equal
from tests.engine.door_task import DOORS, history, read_scalars, run_door, weights

OPTIMIZERS = {
    'SGD': dict(type='SGD', lr=0.02, momentum=0.9, weight_decay=1e-3),
    'Adam': dict(type='Adam', lr=0.01),
    'AdamW': dict(type='AdamW', lr=0.01, weight_decay=0.1),
}
RULES = {
    'norm': dict(type='norm', max_norm=0.5),
    'stock norm': dict(max_norm=0.5, norm_type=1),
    'value': dict(type='value', clip_value=0.05),
    'AGC': dict(type='AGC', clip_factor=0.02, exclude=['head']),
    'AdaGC': dict(type='AdaGC', warmup_steps=3, beta=0.9, rel=1.01),
    'routes': dict(
        type='AGC',
        clip_factor=0.02,
        rules=[dict(match='^head', type='norm', max_norm=0.1), dict(module='GroupNorm', eps=0.1)],
        schedule=dict(type='linear', start_factor=0.2, end=8),
    ),
}
CASES = [(rule, name) for rule in ('norm', 'AGC') for name in OPTIMIZERS]
CASES += [(rule, 'SGD') for rule in RULES if rule not in ('norm', 'AGC')]


@pytest.mark.parametrize('fused', [False, True], ids=['plain', 'fused'])
@pytest.mark.parametrize(('rule', 'name'), CASES)
def test_wrapper_hook_and_attach_are_bit_identical(rule, name, fused, tmp_path):
    optimizer = dict(OPTIMIZERS[name], fused=fused)
    runs = {door: run_door(door, tmp_path / door, RULES[rule], optimizer) for door in DOORS}
    expected = weights(runs['wrapper'])
    for door in DOORS:
        assert equal(weights(runs[door]), expected), door
    # The same log numbers in every step.
    attached = next(hook for hook in runs['attach'].hooks if hasattr(hook, 'log')).log
    for key in LOG_KEYS:
        values = history(runs['wrapper'], f'train/{key}')
        assert history(runs['hook'], f'train/{key}') == pytest.approx(values, rel=0, nan_ok=True)
        assert [stats[key] for stats in attached] == pytest.approx(values, rel=0, nan_ok=True)
    assert min(history(runs['wrapper'], 'train/clip_coef')) < 1


@pytest.mark.parametrize('door', DOORS)
@pytest.mark.parametrize('name', OPTIMIZERS)
@pytest.mark.parametrize('rule', ['norm', 'stock norm', 'value'])
def test_plain_clip_grad_is_bit_identical_to_stock(rule, name, door, tmp_path):
    stock = run_door('stock', tmp_path / 'stock', RULES[rule], OPTIMIZERS[name])
    ours = run_door(door, tmp_path / 'ours', RULES[rule], OPTIMIZERS[name])
    assert equal(weights(ours), weights(stock))
    if rule != 'value' and door != 'attach':
        # The numbers that stock MMEngine logs, in the message hub and in the file.
        theirs = history(stock, 'train/grad_norm')
        assert history(ours, 'train/grad_norm') == theirs
        logged = [line['grad_norm'] for line in read_scalars(tmp_path / 'stock')]
        assert [line['grad_norm'] for line in read_scalars(tmp_path / 'ours')] == logged


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_fused_optimizer_differs_only_by_rounding(name, tmp_path):
    optimizer = dict(OPTIMIZERS[name], fused=True)
    stock = weights(run_door('stock', tmp_path / 'stock', RULES['norm'], optimizer))
    ours = weights(run_door('wrapper', tmp_path / 'ours', RULES['norm'], optimizer))
    for key, value in stock.items():
        error = float((ours[key] - value).norm() / value.norm())
        # One step differs by less than 1e-6; the differences of twelve steps accumulate.
        assert error < 1e-6, key


@pytest.mark.parametrize('door', DOORS)
def test_paramwise_cfg_and_schedulers_match_stock(door, tmp_path):
    """Bit-identical to a stock run with paramwise_cfg and param_scheduler."""
    changes = dict(
        wrapper=dict(
            paramwise_cfg=dict(
                bias_lr_mult=2.0,
                norm_decay_mult=0.0,
                custom_keys={'neck': dict(lr_mult=0.1), 'head': dict(decay_mult=3.0)},
            )
        ),
        param_scheduler=[
            dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=4),
            dict(type='CosineAnnealingLR', by_epoch=False, begin=4, end=12),
            dict(type='LinearMomentum', start_factor=0.5, by_epoch=False, begin=0, end=6),
        ],
    )
    stock = run_door('stock', tmp_path / 'a', RULES['norm'], OPTIMIZERS['SGD'], **changes)
    ours = run_door(door, tmp_path / 'b', RULES['norm'], OPTIMIZERS['SGD'], **changes)
    # One group per parameter, and MMEngine's group of the base learning rate.
    assert len(ours.optim_wrapper.param_groups) == len(weights(ours)) + 1
    assert equal(weights(ours), weights(stock))
    assert ours.optim_wrapper.get_lr() == stock.optim_wrapper.get_lr()
    assert history(ours, 'train/lr') == history(stock, 'train/lr')


@pytest.mark.parametrize('door', DOORS)
def test_schedule_by_epoch_follows_the_epochs(door, tmp_path):
    if door == 'attach':
        pytest.skip('knows no epochs, and says so')
    clip_grad = dict(max_norm=0.4, schedule=dict(type='step', gamma=0.5, by_epoch=True))
    runner = run_door(
        door,
        tmp_path,
        clip_grad,
        OPTIMIZERS['SGD'],
        train_cfg=dict(_delete_=True, type='EpochBasedTrainLoop', max_epochs=3),
        train_dataloader=dict(sampler=dict(_delete_=True, type='DefaultSampler', shuffle=False)),
    )
    seen = history(runner, 'train/clip_threshold')
    assert seen == [0.4] * 5 + [0.2] * 5 + [0.1] * 5


@pytest.mark.parametrize('accumulative_counts', [1, 2, 5])
def test_iteration_schedule_counts_iterations_not_steps(accumulative_counts, tmp_path):
    """MMEngine's schedulers count iterations too, with any accumulation."""
    clip_grad = dict(max_norm=1.0, schedule=dict(type='exponential', gamma=0.5))
    seen = {}
    for door in ('wrapper', 'hook'):
        runner = run_door(
            door,
            tmp_path / door,
            clip_grad,
            OPTIMIZERS['SGD'],
            wrapper=dict(accumulative_counts=accumulative_counts),
        )
        seen[door] = history(runner, 'train/clip_threshold')
    last_iterations = [i for i in range(12) if (i + 1) % accumulative_counts == 0 or i == 11]
    assert seen['wrapper'] == seen['hook'] == [0.5**i for i in last_iterations]


def test_run_leaves_its_config_unchanged(tmp_path):
    from tests.engine.door_task import door_config

    for door in ('wrapper', 'hook'):
        cfg = door_config(door, tmp_path / door, RULES['routes'], OPTIMIZERS['SGD'])
        before = cfg.to_dict()
        runner = Runner.from_cfg(cfg)
        runner.train()
        assert cfg.to_dict() == before
        # The run's copy of the config, which checkpoints hold too.
        clip_grad = (
            runner.cfg.optim_wrapper.get('clip_grad') or runner.cfg.custom_hooks[0].clip_grad
        )
        assert clip_grad.to_dict() == RULES['routes']


@pytest.mark.parametrize('spoil', ['nan', 'inf'])
@pytest.mark.parametrize('fused', [False, True], ids=['plain', 'fused'])
def test_nonfinite_batch_is_logged_and_skipped(fused, spoil, tmp_path):
    """Stock MMEngine would end with NaN."""
    data = dict(dataset=dict(type='RandomData', spoiled={'images/003.jpg': float(spoil)}))
    runs = {}
    for door in DOORS:
        runs[door] = run_door(
            door,
            tmp_path / door,
            RULES['norm'],
            dict(OPTIMIZERS['SGD'], fused=fused),
            train_dataloader=data,
        )
    for door in DOORS:
        assert equal(weights(runs[door]), weights(runs['wrapper']))
    assert all(torch.isfinite(value).all() for value in weights(runs['wrapper']).values())
    bad = history(runs['wrapper'], 'train/nonfinite')
    assert 0 < sum(bad) < len(bad) == 12
