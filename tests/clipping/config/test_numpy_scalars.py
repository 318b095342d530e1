"""Configs accept NumPy scalars and convert them to Python numbers; tensors are refused."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from torch import nn

from gclip_mm import ClipConfigError, attach
from gclip_mm.clipping import NormClip, parse_clip_grad
from gclip_mm.clipping.checks import check_flag, check_norm_type, check_number
from tests.clipping.cases import CASES

#: Python type -> NumPy constructors for its values.
FORMS = {
    bool: [np.bool_, np.array],
    int: [np.int64, np.uint8, np.array],
    float: [np.float64, np.float32, np.float16, np.array],
}


def convert(value, form):
    """Convert every number in a nested value by the NumPy constructor at index ``form``."""
    if isinstance(value, dict):
        return {key: convert(item, form) for key, item in value.items()}
    if isinstance(value, list):
        return [convert(item, form) for item in value]
    forms = FORMS.get(type(value), [])
    return forms[form % len(forms)](value) if forms else value


def is_plain(value):
    if isinstance(value, dict):
        return all(map(is_plain, value.values()))
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    return value is None or type(value) in (bool, int, float, str)


@pytest.mark.parametrize('form', range(4))
@pytest.mark.parametrize('case', CASES)
def test_numpy_scalars_are_stored_as_python_numbers(case, form):
    common = dict(max_consecutive_skips=9)
    config = parse_clip_grad(convert({**CASES[case], **common}, form))
    assert is_plain(config.raw)
    assert type(config.max_consecutive_skips) is int
    rule = config.outer.core
    for key in rule.thresholds:
        assert is_plain(getattr(rule, key))
    assert b'numpy' not in pickle.dumps(config.raw)


def test_log_and_state_hold_python_numbers():
    p = nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    optimizer = torch.optim.SGD([p], lr=0.1)
    schedule = dict(type='linear', start_factor=np.float32(0.5), end=np.int64(10))
    handle = attach(optimizer, dict(max_norm=np.float32(0.5), schedule=schedule))
    optimizer.step()
    stats = handle.stats()
    assert stats['clip_threshold'] == 0.25
    assert is_plain(stats) and is_plain(handle.engine.state_dict())


def test_constructors_and_checks_accept_numpy_scalars():
    assert NormClip(np.float32(0.5), norm_type=np.int64(2)).norm_type == 2.0
    assert type(check_norm_type('p', np.float32(1))) is float
    check_flag('carry', np.bool_(True))
    check_number('n', np.int64(3), integer=True)


@pytest.mark.parametrize(
    ('value', 'integer', 'message'),
    [
        (np.float32(-1), False, 'at least 0'),
        (np.float64('nan'), False, 'a finite number'),
        (np.bool_(True), False, 'must be a number'),
        (np.float32(2), True, 'a whole number'),
        (np.ones(1), False, 'must be a number'),
        (np.str_('1'), False, 'must be a number'),
    ],
)
def test_invalid_numpy_values_raise_like_python_values(value, integer, message):
    with pytest.raises(ClipConfigError, match=message):
        check_number('n', value, low=0, integer=integer)


@pytest.mark.parametrize(
    'config',
    [
        dict(max_norm=torch.tensor(0.5)),
        dict(max_norm=nn.Parameter(torch.tensor(0.5))),
        dict(max_norm=1.0, norm_type=torch.tensor(2.0)),
        dict(type='AGC', clip_factor=torch.tensor([0.1])),
        dict(max_norm=1.0, carry=torch.tensor(True)),
        dict(max_norm=1.0, max_consecutive_skips=torch.tensor(3)),
    ],
    ids=lambda config: list(config)[-1],
)
def test_tensor_is_refused_and_the_error_suggests_item(config):
    key = list(config)[-1]
    with pytest.raises(ClipConfigError, match=rf'{key} must be .*tensor.*{key}=tensor\.item\(\)'):
        parse_clip_grad(config)
