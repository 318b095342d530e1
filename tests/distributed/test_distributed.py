"""Clipping a distributed model equals clipping in one process, for two and four processes."""

from __future__ import annotations

import math

import pytest
import torch

from tests.distributed.engine_cases import CASES, FOUR, HALVES, NEEDS_UNITS

#: The first test that needs the results runs all processes, which is slow on a busy machine.
pytestmark = pytest.mark.timeout(900)


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
def test_weights_and_records_of_two_processes_equal_those_of_one(engine_results, case):
    how = CASES[case]['how']
    rule = case.removeprefix(f'{how} ').rpartition(' ')[0]
    spread = engine_results[2][case]
    if 'error' in spread:
        assert how == 'fsdp1'
        assert rule in NEEDS_UNITS or 'FSDP' in spread['error']
        return
    assert not (how == 'fsdp1' and rule in NEEDS_UNITS)
    compare(engine_results[1][case], spread)


@pytest.mark.parametrize('case', FOUR)
def test_weights_and_records_of_four_processes_equal_those_of_one(engine_results, case):
    compare(engine_results[1][case], engine_results[4][case])


@pytest.mark.parametrize('case', [case for case in CASES if not case.startswith('fsdp1')])
def test_state_of_two_processes_equals_that_of_one(engine_results, case):
    single, spread = engine_results[1][case]['state'], engine_results[2][case]['state']
    torch.testing.assert_close(flat(spread), flat(single), rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize('case', FOUR)
def test_state_on_a_mesh_of_four_processes_equals_that_of_one(engine_results, case):
    single, spread = engine_results[1][case]['state'], engine_results[4][case]['state']
    torch.testing.assert_close(flat(spread), flat(single), rtol=1e-4, atol=2e-6)


def flat(state, path='') -> dict[str, torch.Tensor]:
    """The tensors of a nested state by their path."""
    if isinstance(state, dict):
        items = state.items()
    elif isinstance(state, list):
        items = enumerate(state)
    else:
        return {path: torch.as_tensor(state)} if isinstance(state, torch.Tensor) else {}
    return {k: v for key, item in items for k, v in flat(item, f'{path}.{key}').items()}


def test_elementwise_state_on_flat_shards_is_refused(engine_results):
    for rule in ('SpikeClip', 'carry', 'carry in a chain'):
        assert 'fully_shard' in engine_results[2][f'fsdp1 {rule} sgd']['error']


def test_agc_on_flat_shards_is_refused_and_names_fully_shard(engine_results):
    error = engine_results[2]['fsdp1 AGC sgd']['error']
    assert 'fully_shard' in error


@pytest.mark.parametrize('key', HALVES)
@pytest.mark.parametrize('processes', [1, 4])
def test_run_resumes_with_another_number_of_shards(engine_results, key, processes):
    whole, again = engine_results[2][key], engine_results[processes][key]
    for name, expected in whole['params'].items():
        torch.testing.assert_close(again['params'][name], expected, rtol=1e-4, atol=2e-6)
    torch.testing.assert_close(flat(again['state']), flat(whole['state']), rtol=1e-4, atol=2e-6)
    # Without a saved state, the comparison would show nothing.
    assert flat(whole['half']['state'])


#: All-reduces per sharded mesh dimension in a step that clips.
ALL_REDUCES = {'NormClip': 1, 'inf norm': 1, '3-norm': 1, 'AutoClip': 1, 'ZClip': 1}
ALL_REDUCES |= {'ParamNormClip': 1, 'AdaGC': 1, 'GradientStabilizer': 1, 'AGC': 2, 'routes': 4}


@pytest.mark.parametrize('rule', ALL_REDUCES)
def test_number_of_all_reduces_on_one_mesh_dimension(engine_results, rule):
    optimizer = 'adamw' if rule == 'GradientStabilizer' else 'sgd'
    steps = engine_results[2][f'fsdp2 {rule} {optimizer}']['collectives']
    # A nonfinite step (step 3) needs no further all-reduces once it is detected.
    counts = [len(messages) for step, messages in enumerate(steps) if step != 3]
    assert counts == [ALL_REDUCES[rule]] * 5


@pytest.mark.parametrize('rule', ['NormClip', 'AGC'])
def test_number_of_all_reduces_on_two_mesh_dimensions(engine_results, rule):
    """A replicated dimension needs no all-reduce; tensor parallelism is a second sharded one."""
    for how, dimensions in (('hsdp', 1), ('tp', 2)):
        steps = engine_results[4][f'{how} {rule} sgd']['collectives']
        counts = [len(messages) for step, messages in enumerate(steps) if step != 3]
        assert counts == [ALL_REDUCES[rule] * dimensions] * 5


def test_reference_runs_clip_and_skip_one_step(engine_results):
    # Otherwise, equal parameters would show nothing.
    for case in CASES:
        records = engine_results[1][case]['records']
        assert records[3]['nonfinite'] == 1
        assert all(record['nonfinite'] == 0 for i, record in enumerate(records) if i != 3)
    for rule in ('NormClip', 'AGC', 'ValueClip'):
        fractions = [r['clip_fraction'] for r in engine_results[1][f'ddp {rule} sgd']['records']]
        assert max(fractions) > 0
