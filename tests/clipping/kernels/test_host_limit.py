"""Tests of AGC in one pass over host memory, against its formula and against two passes."""

from __future__ import annotations

import math
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gclip_mm import attach
from gclip_mm.clipping.base import Outcome
from gclip_mm.clipping.kernels import Units, host_tensors
from gclip_mm.clipping.rules.agc import AGC
from gclip_mm.clipping.rules.param_norm_clip import ParamNormClip
from gclip_mm.clipping.rules.value_clip import ValueClip
from gclip_mm.clipping.step.observers import StepObserver

from ..cases import Probe

pytest.importorskip('numba')
CONFIG = dict(type='AGC', clip_factor=0.02, eps=0.01)


def limited(rows: list[list[float]], weights: list[list[float]], eps: float, factor: float):
    """The documented formula in float64."""
    g, w = (np.array(x, dtype=np.float64).reshape(len(x), -1) for x in (rows, weights))
    with np.errstate(all='ignore'):
        norms, sizes = np.linalg.norm(g, axis=1), np.linalg.norm(w, axis=1)
        limits = factor * np.where(sizes < eps, eps, sizes)
        over = (norms > limits) & np.isfinite(norms)
        coefs = np.where(over, limits / np.maximum(norms, 1e-6), 1.0)
        return norms, sizes, np.where(over[:, None], g * coefs[:, None], g)


def check(grads: Tensor, weights: Tensor, eps: float, factor: float) -> None:
    n, length = grads.shape
    units = [Units(0, n, length), Units(n, n, length)]
    kernels = host_tensors.HostTensors(units, [grads, weights], 2 * n)
    assert kernels.can_limit and kernels.take([grads, weights])
    expected = limited(grads.tolist(), weights.tolist(), eps, factor)
    before = weights.clone()
    norms, sizes = kernels.limit(eps, factor).split(n)
    np.testing.assert_allclose(norms.numpy(), expected[0], rtol=1e-6)
    np.testing.assert_allclose(sizes.numpy(), expected[1], rtol=1e-6)
    np.testing.assert_allclose(grads.numpy(), expected[2].astype(np.float32), rtol=1e-6)
    assert torch.equal(weights, before)


@pytest.mark.parametrize('length', [1, 7, 511, 513, 3000, 32768])
@pytest.mark.parametrize('rows', [1, 5, 60])
def test_limit_computes_the_documented_formula(rows, length):
    torch.manual_seed(0)
    grads = torch.randn(rows, length) * torch.logspace(-3, 3, rows)[:, None]
    check(grads, torch.randn(rows, length), 1e-3, 0.1)


def test_limit_of_nonfinite_zero_and_empty_units():
    grads, weights = torch.ones(6, 600), torch.ones(6, 600)
    grads[0, 3], grads[1, 599], grads[2, 0] = math.nan, math.inf, -math.inf
    grads[3], weights[4] = 0, 0
    check(grads, weights, 1e-3, 0.1)
    nothing = torch.zeros(0, 3)
    kernels = host_tensors.HostTensors([Units(0, 0, 3)] * 2, [nothing, nothing.clone()], 0)
    assert kernels.take([nothing, nothing]) and kernels.limit(1e-3, 0.1).shape == (0,)


numbers = st.floats(-(2.0**60), 2.0**60, width=32)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.lists(numbers, min_size=3, max_size=3), min_size=1, max_size=6),
    scale=st.sampled_from([0.0, 1e-20, 1.0, 1e10]),
    eps=st.sampled_from([0, 1e-3, 1.0]),
    factor=st.one_of(st.floats(0, 10), st.sampled_from([0, 1])),
)
def test_limit_of_any_numbers_equals_the_formula(rows, scale, eps, factor):
    grads = torch.tensor(rows)
    check(grads, grads.flip(0) * scale, eps, factor)


class Net(nn.Module):
    """Every kind of unit; those of the transposed convolution are not contiguous."""

    def __init__(self, wide: int = 3000) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.last = nn.Conv2d(6, 4, 3).to(memory_format=torch.channels_last)
        self.up = nn.ConvTranspose2d(4, 6, 2, groups=2)
        self.wide = nn.Linear(wide, 20)
        self.gain = nn.Parameter(torch.tensor(2.0))


def steps_of(model: nn.Module, watched: bool, bad: tuple[int, float] | None = None):
    """Return the gradients that an optimizer gets in three steps, and the records."""
    optimizer = Probe(list(model.parameters()))
    out, records = [], []
    with attach(optimizer, CONFIG, model=model) as handle:
        if watched:
            handle.engine.observers.append(StepObserver())
        for step in range(3):
            generator = torch.Generator().manual_seed(step)
            for k, p in enumerate(model.parameters()):
                grad = torch.randn(p.shape, generator=generator) * 10.0 ** ((k + step) % 4 - 3)
                p.grad = torch.empty_like(p).copy_(grad)
            if bad and bad[0] == step:
                model.wide.weight.grad[3, 5] = bad[1]
            optimizer.step()
            out.append(optimizer.seen)
            records.append(handle.stats())
    return out, records


@pytest.mark.parametrize('count', [1, 2, 3])
@pytest.mark.parametrize('bad', [None, (1, math.nan), (0, -math.inf)])
def test_one_pass_is_bit_identical_to_two(bad, count):
    torch.manual_seed(0)
    model, usual = Net(), torch.get_num_threads()
    found = {}
    torch.set_num_threads(count)
    try:
        for watched in (False, True):
            limit = host_tensors.HostTensors.limit
            with mock.patch.object(host_tensors.HostTensors, 'limit', autospec=True) as seen:
                seen.side_effect = limit
                found[watched] = steps_of(model, watched, bad)
            # An observer has to see the gradients of a skipped step unchanged.
            assert seen.call_count == (0 if watched else 3)
    finally:
        torch.set_num_threads(usual)
    for a, b in zip(found[False][0], found[True][0], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    for a, b in zip(found[False][1], found[True][1], strict=True):
        assert a == pytest.approx(b, rel=1e-12, nan_ok=True)


def test_agc_gives_the_same_without_kernels(request):
    torch.manual_seed(0)
    model = Net()
    ours = steps_of(model, False)
    request.getfixturevalue('without_host_kernels')
    theirs = steps_of(model, False)
    for a, b in zip(ours[0], theirs[0], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=0)
    for a, b in zip(ours[1], theirs[1], strict=True):
        assert a == pytest.approx(b, rel=1e-6)


def test_unit_longer_than_an_item_takes_two_passes():
    model = Net(wide=host_tensors._ITEM + 1)
    with mock.patch.object(host_tensors.HostTensors, 'limit') as limit:
        ours = steps_of(model, False)
    assert not limit.called
    torch.testing.assert_close(ours[0], steps_of(model, True)[0], rtol=0, atol=0)


def test_skipped_step_may_have_scaled_finite_units():
    """Scaling starts before the NaN is found; weights and optimizer are unchanged."""
    p = nn.Parameter(torch.ones(3, 4))
    optimizer = torch.optim.SGD([p], lr=1.0, momentum=0.9)
    with attach(optimizer, dict(type='AGC', clip_factor=0.25)) as handle:
        p.grad = torch.full((3, 4), 2.0)
        p.grad[1, 1] = math.nan
        optimizer.step()
        assert handle.stats()['nonfinite'] == 1 and handle.stats()['clip_fraction'] == 0
    assert (p == 1).all() and not optimizer.state
    assert p.grad[[0, 2]].tolist() == [[0.25] * 4] * 2
    assert p.grad[1, 0] == 2 and math.isnan(p.grad[1, 1])


class Late(AGC):
    """Overrides ``clip`` to clip nothing."""

    def clip(self, view, measure, ok):
        return Outcome(None, measure.norm, math.inf, 0, 1)


class LateValue(ValueClip):
    clip = Late.clip


def centred(base: type) -> type:
    """A rule that replaces the measured gradients before clipping."""

    class Centred(base):
        def clip(self, view, measure, ok):
            view.load([grad - grad.mean() for grad in view.grads])
            for info, grad in zip(view.infos, view.grads, strict=True):
                info.param.grad = grad
            return super().clip(view, measure, ok)

    return Centred


def stepped(rule: type, grad: Tensor, **options: float) -> Tensor:
    """A gradient after a step with a user-defined rule."""
    p = nn.Parameter(torch.ones_like(grad))
    optimizer = Probe([p])
    with attach(optimizer, dict(type=rule.__mro__[1].__name__, **options)) as handle:
        handle.engine.config.outer.__class__ = rule
        p.grad = grad.clone()
        optimizer.step()
    return optimizer.seen[0]


@pytest.mark.parametrize(
    ('rule', 'options'), [(Late, dict(clip_factor=0.01)), (LateValue, dict(clip_value=0.1))]
)
def test_subclass_with_its_own_clip_is_not_clipped_early(rule, options):
    grad = torch.randn(30, 40)
    assert torch.equal(stepped(rule, grad, **options), grad)


def test_gradients_loaded_by_a_rule_are_clipped():
    grad = torch.randn(30, 400) + 1
    seen = stepped(centred(ParamNormClip), grad, max_norm=0.01)
    assert float(seen.norm()) < 0.011
    seen = stepped(centred(AGC), grad, clip_factor=0.01)
    assert (seen.norm(dim=1) < 0.21).all() and float(seen.mean().abs()) < 1e-3
    seen = stepped(centred(ValueClip), grad, clip_value=0.1)
    assert float(seen.abs().max()) == pytest.approx(0.1)


def test_gradient_of_another_shape_writes_nothing_past_its_end():
    memory = torch.full((40_000,), 7.0)
    p = nn.Parameter(torch.ones(100, 100))
    optimizer = torch.optim.SGD([p], lr=0.0)
    attach(optimizer, dict(type='AGC', clip_factor=0.01))
    p.grad = memory[:10_000].view(100, 100)
    p.data = torch.ones(200, 100)
    with pytest.raises(RuntimeError):
        optimizer.step()
    assert (memory[10_000:] == 7).all()


@pytest.mark.parametrize('shape', [(0, 3), (0,), (3, 0)])
def test_empty_parameters_are_clipped_without_error(shape):
    p, q = nn.Parameter(torch.zeros(shape)), nn.Parameter(torch.ones(3, 2))
    optimizer = torch.optim.SGD([p], lr=0.1)
    with attach(optimizer, CONFIG) as handle:
        p.grad = torch.zeros(shape)
        optimizer.step()
        assert handle.stats()['grad_norm'] == 0
    optimizer = torch.optim.SGD([p, q], lr=0.1)
    with attach(optimizer, CONFIG):
        q.grad = torch.ones(3, 2)
        optimizer.step()
    assert float(q.grad.norm(dim=1).max()) == pytest.approx(0.02 * 2**0.5)
