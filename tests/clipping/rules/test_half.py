"""Half-precision gradients are scaled in float32 or wider, and rounded once."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.clipping.cases import CASES, DeviceRunner, Runner, on_device

SHAPES = [(5,), (7, 11), (4, 3, 3, 3), (), (1, 6)]
HALF = [torch.float16, torch.bfloat16]


def gradients(step, dtype):
    """Half-precision gradients; those of the last steps are near the maximum of float16."""
    generator = torch.Generator().manual_seed(step)
    size = 1.5e4 if step >= 4 else 1.0
    return [(torch.randn(s, generator=generator) * size).to(dtype) for s in SHAPES]


def check(case, found, expected):
    """Compare with float64, in units in the last place of the half-precision dtype."""
    info = torch.finfo(found.dtype)
    # Carried sums contain the rounding errors of earlier steps, also those of larger elements.
    size = expected.abs().max() if 'carry' in case else expected.abs()
    ulp = torch.exp2(torch.floor(torch.log2(size))) * info.eps
    distance = (found.double() - expected).abs() / ulp.clamp(min=info.tiny * info.eps)
    # Each rule of a chain rounds.
    assert distance.max() <= (3.0 if 'Chain' in case or 'carry' in case else 1.0)


@pytest.mark.parametrize('dtype', HALF)
@pytest.mark.parametrize('case', CASES)
def test_every_rule_is_within_a_unit_in_the_last_place_of_float64(case, dtype):
    half, wide = Runner(CASES[case], SHAPES, dtype), Runner(CASES[case], SHAPES, torch.float64)
    for step in range(6):
        grads = gradients(step, dtype)
        found, expected = half(grads), wide([grad.double() for grad in grads])
        for a, b in zip(found, expected, strict=True):
            check(case, a, b)


@pytest.mark.parametrize('dtype', HALF)
@pytest.mark.parametrize('case', [name for name in CASES if 'Chain' not in name])
def test_every_rule_on_a_device_is_within_a_unit_in_the_last_place_of_float64(case, dtype):
    wide = Runner(CASES[case], SHAPES, torch.float64)
    device = DeviceRunner(CASES[case], SHAPES)
    device.params = [nn.Parameter(p.detach().to(dtype)) for p in device.params]
    for step in range(6):
        grads = gradients(step, dtype)
        found, expected = device(grads), wide([grad.double() for grad in grads])
        for a, b in zip(found, expected, strict=True):
            check(case, a, b)


@pytest.mark.parametrize('place', ['host', 'device'])
@pytest.mark.parametrize('rule', ['ParamNormClip', 'NormClip'])
def test_coefficient_below_float16_range_is_not_rounded_to_zero(rule, place):
    run = Runner(dict(type=rule, max_norm=0.4), [(200, 200)], torch.float16)
    grad = torch.full((200, 200), 6e4, dtype=torch.float16)
    if place == 'host':
        (out,) = run([grad])
    else:
        with on_device():
            (out,) = run([grad])
    assert out.double().norm() == pytest.approx(0.4, rel=2e-3)


def test_half_gradients_are_not_multiplied_by_scalars(monkeypatch):
    """torch rounds Python numbers (on the CPU) and 0-d tensors (on a GPU) to the tensor's dtype."""
    multiply = torch.Tensor.mul_

    def mul_(self, other):
        assert self.dtype not in HALF or (isinstance(other, torch.Tensor) and other.ndim > 0)
        return multiply(self, other)

    def refuse(*_):
        raise AssertionError('a foreach call rounds the coefficients')

    monkeypatch.setattr(torch.Tensor, 'mul_', mul_)
    monkeypatch.setattr(torch, '_foreach_mul_', refuse)
    grads = gradients(5, torch.float16)
    for case in ('NormClip', 'ParamNormClip', 'AGC', 'AdaClip short'):
        Runner(CASES[case], SHAPES, torch.float16)(grads)
        DeviceRunner(CASES[case], SHAPES)(grads)
