"""Scheduled thresholds; MMEngine's own schedulers are the reference."""

import math

import pytest
import torch
from torch import nn

from gclip_mm import ClipConfigError, attach
from gclip_mm.clipping import parse_clip_grad
from gclip_mm.clipping.config.schedules import Schedule

STEPS = 30
CASES = {
    'constant': ('ConstantParamScheduler', dict(factor=0.25, begin=0, end=7)),
    'constant later': ('ConstantParamScheduler', dict(factor=0.25, begin=4, end=9)),
    'linear': ('LinearParamScheduler', dict(start_factor=0.1, begin=0, end=11)),
    'linear down': ('LinearParamScheduler', dict(start_factor=1.0, end_factor=0.2, end=9)),
    'linear later': ('LinearParamScheduler', dict(start_factor=0.5, begin=5, end=12)),
    'cosine': ('CosineAnnealingParamScheduler', dict(eta_min_ratio=0.1, begin=0, end=20)),
    'cosine to nothing': ('CosineAnnealingParamScheduler', dict(eta_min_ratio=0.0, end=25)),
    'cosine later': ('CosineAnnealingParamScheduler', dict(eta_min_ratio=0.2, begin=6, end=22)),
    'cosine with a period': (
        'CosineAnnealingParamScheduler',
        dict(eta_min_ratio=0.1, T_max=8, begin=0, end=26),
    ),
    'step': ('StepParamScheduler', dict(step_size=4, gamma=0.5, begin=0, end=18)),
    'step later': ('StepParamScheduler', dict(step_size=3, gamma=0.5, begin=5)),
    'exponential': ('ExponentialParamScheduler', dict(gamma=0.9, begin=3, end=20)),
}
#: MMEngine's names -> the short names of this package.
SHORT = {
    'ConstantParamScheduler': 'constant',
    'LinearParamScheduler': 'linear',
    'CosineAnnealingParamScheduler': 'cosine',
    'StepParamScheduler': 'step',
    'ExponentialParamScheduler': 'exponential',
}


def thresholds_of_mmengine(schedules, base):
    """Values of a parameter group key that MMEngine's schedulers change, one per step."""
    scheduler = pytest.importorskip('mmengine.optim.scheduler')
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    optimizer.param_groups[0]['max_norm'] = base
    all_of_them = [
        getattr(scheduler, kind)(optimizer, param_name='max_norm', by_epoch=False, **kwargs)
        for kind, kwargs in schedules
    ]
    values = []
    for _ in range(STEPS):
        values.append(optimizer.param_groups[0]['max_norm'])
        optimizer.step()
        for one in all_of_them:
            one.step()
    return values


def thresholds_of_ours(schedules, base, **config):
    p = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([p], lr=0.0)
    handle = attach(optimizer, dict(max_norm=base, schedule=schedules, **config))
    values = []
    for _ in range(STEPS):
        p.grad = torch.ones(1)
        optimizer.step()
        values.append(handle.stats()['clip_threshold'])
    return values


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('short', [True, False])
@pytest.mark.parametrize('case', CASES)
def test_threshold_follows_the_mmengine_scheduler(case, short):
    kind, kwargs = CASES[case]
    name = SHORT[kind] if short else kind.replace('ParamScheduler', 'LR')
    ours = thresholds_of_ours(dict(type=name, **kwargs), 3.0)
    theirs = thresholds_of_mmengine([(kind, kwargs)], 3.0)
    assert ours == pytest.approx(theirs, rel=1e-9, abs=1e-9)


@pytest.mark.filterwarnings('ignore')
def test_warm_up_followed_by_decay_follows_mmengine():
    parts = [
        ('LinearParamScheduler', dict(start_factor=0.1, begin=0, end=6)),
        ('CosineAnnealingParamScheduler', dict(eta_min_ratio=0.1, begin=6, end=25)),
    ]
    ours = thresholds_of_ours([dict(type=kind, **kwargs) for kind, kwargs in parts], 2.0)
    assert ours == pytest.approx(thresholds_of_mmengine(parts, 2.0), rel=1e-9)


def test_scheduled_threshold_is_the_one_that_clips():
    p = nn.Parameter(torch.zeros(4))
    optimizer = torch.optim.SGD([p], lr=0.0)
    attach(optimizer, dict(max_norm=1.0, schedule=dict(type='exponential', gamma=0.5)))
    for step in range(5):
        p.grad = torch.full((4,), 10.0)
        optimizer.step()
        assert float(p.grad.norm()) == pytest.approx(0.5**step, rel=1e-5)


def test_each_rule_follows_its_own_schedule():
    model = nn.ModuleDict(dict(backbone=nn.Linear(2, 2), head=nn.Linear(2, 2)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    attach(
        optimizer,
        dict(
            max_norm=1.0,
            schedule=dict(type='step', gamma=0.5),
            rules=[dict(match='head', max_norm=2.0, schedule=dict(type='exponential', gamma=0.1))],
        ),
        model=model,
    )
    for step in range(3):
        norms = []
        for part in (model.backbone, model.head):
            for p in part.parameters():
                p.grad = torch.full_like(p, 100.0)
        optimizer.step()
        for part in (model.backbone, model.head):
            norms.append(float(torch.cat([p.grad.flatten() for p in part.parameters()]).norm()))
        assert norms == pytest.approx([0.5**step, 2 * 0.1**step], rel=1e-4)


def test_route_without_schedule_does_not_inherit_the_outer_one():
    config = parse_clip_grad(
        dict(
            max_norm=1.0,
            schedule=dict(type='linear', start_factor=0.1, end=9),
            rules=[dict(match='head', max_norm=2.0)],
        )
    )
    assert len(config.drivers) == 1
    config.drivers[0].set(0, 0)
    rule, outer = (route.clipper for route in config.router.routes)
    assert outer.max_norm == pytest.approx(0.1) and rule.max_norm == 2.0


def test_two_keys_of_one_rule_can_be_scheduled():
    config = parse_clip_grad(
        dict(
            max_norm=8.0,
            min_norm=1.0,
            schedule=[
                dict(type='linear', param_name='min_norm', start_factor=0.5, end=3),
                dict(type='linear', start_factor=0.25, end=3),
            ],
        )
    )
    config.drivers[0].set(0, 0)
    assert (config.outer.max_norm, config.outer.min_norm) == (2.0, 0.5)
    config.drivers[0].set(9, 0)
    assert (config.outer.max_norm, config.outer.min_norm) == (8.0, 1.0)


def test_factors_by_epoch_and_by_iteration_multiply():
    config = parse_clip_grad(
        dict(
            max_norm=1.0,
            schedule=[
                dict(type='linear', start_factor=0.5, end=11),
                dict(type='step', step_size=1, gamma=0.5, by_epoch=True),
            ],
        )
    )
    driver = config.drivers[0]
    assert driver.needs_epoch
    driver.set(iteration=5, epoch=2)
    assert config.outer.max_norm == pytest.approx(0.75 * 0.25)


def test_factor_depends_on_the_step_alone():
    """``factor(t)`` is a closed form, so a schedule has no state and resumes at any step."""
    schedule = Schedule('cosine', eta_min_ratio=0.1, begin=2, end=12)
    forward = [schedule.factor(t) for t in range(20)]
    assert [schedule.factor(t) for t in reversed(range(20))] == forward[::-1]
    assert forward[0] == forward[2] == 1.0 and forward[12:] == [forward[11]] * 8
    assert all(math.isfinite(value) for value in forward)


@pytest.mark.parametrize('span', [1, 2])
@pytest.mark.parametrize('kind', ['constant', 'linear', 'cosine', 'step', 'exponential'])
def test_schedule_of_one_or_two_steps_gives_factors_between_0_and_1(kind, span):
    schedule = Schedule(kind, begin=3, end=3 + span)
    assert all(0 <= schedule.factor(t) <= 1 for t in range(10))
    assert schedule.factor(2) == 1.0


def test_misspelt_schedule_key_raises_when_the_config_is_parsed():
    with pytest.raises(ClipConfigError, match='T_mx'):
        parse_clip_grad(dict(max_norm=1.0, schedule=dict(type='cosine', T_mx=3, end=9)))
