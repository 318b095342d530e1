"""Clipping is the same however the model is spread: one process is the truth for two and four."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from gclip_mm import CLIPPERS
from tests.distributed.launching import launch, once

WORKER = Path(__file__).with_name('worker.py')

RULES = {name: {'type': name, **CLIPPERS.get(name).example} for name in CLIPPERS}
RULES |= {
    'inf norm': dict(type='NormClip', max_norm=0.05, norm_type='inf'),
    '3-norm': dict(type='NormClip', max_norm=0.1, norm_type=3),
    'AGC everywhere': dict(type='AGC', clip_factor=1e-3),
    'carry': dict(type='NormClip', max_norm=0.3, carry=True),
    'carry in a chain': dict(
        type='ChainClip',
        clips=[
            dict(type='ValueClip', clip_value=0.05, carry=True),
            dict(type='NormClip', max_norm=0.3),
        ],
    ),
    'routes': dict(
        type='AGC',
        rules=[dict(match='^stem', type='NormClip', max_norm=0.1)],
        exclude=['head'],
    ),
}


def optimizers(how: str, rule: dict) -> list[str]:
    if rule['type'] == 'GradientStabilizer':
        return [] if how == 'zero' else ['adamw']
    # torch itself refuses to fuse a step over DTensors and plain tensors.
    return ['sgd'] if how in ('zero', 'mixed') else ['sgd', 'adamw_fused']


CASES = {
    f'{how} {name} {optimizer}': dict(
        how=how, clip_grad=rule, optimizer=optimizer, nan_step=3, count=how == 'fsdp2'
    )
    for how in ('ddp', 'zero', 'fsdp1', 'fsdp2', 'mixed')
    for name, rule in RULES.items()
    for optimizer in optimizers(how, rule)
}
FOUR = {
    f'{how} {name} sgd': dict(how=how, clip_grad=RULES[name], optimizer='sgd', nan_step=3)
    for how in ('hsdp', 'fsdp2')
    for name in ('NormClip', 'AGC', 'ValueClip', 'routes')
}
#: FSDP1 lays parameters out flat, so that these cannot be right there, and say so.
NEEDS_UNITS = {name for name, rule in RULES.items() if rule['type'] == 'AGC'}


@pytest.fixture(scope='module')
def results(tmp_path_factory) -> dict[int, dict]:
    def make(file: Path) -> None:
        found = {}
        for processes, cases in ((1, {**CASES, **FOUR}), (2, CASES), (4, FOUR)):
            found[processes] = launch(WORKER, cases, processes, file.with_suffix(f'.{processes}'))
        torch.save(found, file)

    return once(tmp_path_factory, 'engines', make)


def compare(single: dict, spread: dict) -> None:
    for name, expected in single['params'].items():
        torch.testing.assert_close(spread['params'][name], expected, rtol=1e-4, atol=2e-6)
    for one, many in zip(single['records'], spread['records'], strict=True):
        for key, value in one.items():
            if math.isnan(value):
                assert math.isnan(many[key])
            else:
                assert many[key] == pytest.approx(value, rel=1e-4, abs=1e-6), key


@pytest.mark.parametrize('case', CASES)
def test_two_processes_equal_one(results, case):
    how = CASES[case]['how']
    rule = case.removeprefix(f'{how} ').rpartition(' ')[0]
    spread = results[2][case]
    if 'error' in spread:
        assert how == 'fsdp1'
        assert rule in NEEDS_UNITS or 'FSDP' in spread['error']
        return
    assert not (how == 'fsdp1' and rule in NEEDS_UNITS)
    compare(results[1][case], spread)


@pytest.mark.parametrize('case', FOUR)
def test_four_processes_equal_one(results, case):
    compare(results[1][case], results[4][case])


@pytest.mark.parametrize('case', [case for case in CASES if not case.startswith('fsdp1')])
def test_the_state_does_not_know_how_many_processes_there_were(results, case):
    single, spread = results[1][case]['state'], results[2][case]['state']
    torch.testing.assert_close(flat(spread), flat(single), rtol=1e-4, atol=2e-6)


def flat(state, path='') -> dict[str, torch.Tensor]:
    """The numbers of a nested state by their path."""
    if isinstance(state, dict):
        items = state.items()
    elif isinstance(state, list):
        items = enumerate(state)
    else:
        return {path: torch.as_tensor(state)} if isinstance(state, torch.Tensor) else {}
    return {k: v for key, item in items for k, v in flat(item, f'{path}.{key}').items()}


def test_elementwise_state_on_flat_shards_is_refused(results):
    for rule in ('SpikeClip', 'carry', 'carry in a chain'):
        assert 'fully_shard' in results[2][f'fsdp1 {rule} sgd']['error']


def test_agc_on_flat_shards_says_what_to_do(results):
    error = results[2]['fsdp1 AGC sgd']['error']
    assert 'fully_shard' in error


def test_a_norm_rule_needs_one_all_reduce(results):
    for rule in ('NormClip', 'inf norm', '3-norm'):
        assert results[2][f'fsdp2 {rule} sgd']['collectives'] == [1] * 6


def test_the_steps_clipped_and_skipped(results):
    # Otherwise equal parameters would prove nothing.
    for case in CASES:
        records = results[1][case]['records']
        assert records[3]['nonfinite'] == 1
        assert all(record['nonfinite'] == 0 for i, record in enumerate(records) if i != 3)
    for rule in ('NormClip', 'AGC', 'ValueClip'):
        fractions = [r['clip_fraction'] for r in results[1][f'ddp {rule} sgd']['records']]
        assert max(fractions) > 0
