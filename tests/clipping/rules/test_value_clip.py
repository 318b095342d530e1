import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gclip_mm import attach

pytestmark = pytest.mark.usefixtures('either_path')

SHAPES = [(), (5,), (3, 4), (2, 3, 5), (4, 2, 3, 3), (2, 2, 3, 2, 3), (0,), (0, 3)]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def make(shapes, dtype=torch.float32, seed=0, scale=1.0):
    """Parameters with random gradients."""
    generator = torch.Generator().manual_seed(seed)
    params = []
    for shape in shapes:
        p = torch.nn.Parameter(torch.zeros(shape, dtype=dtype))
        p.grad = (torch.randn(shape, generator=generator) * scale).to(dtype)
        params.append(p)
    return params


def clip(params, **kwargs):
    """Clip the gradients in place by the engine, without changing the parameters."""
    optimizer = torch.optim.SGD(params, lr=0.0)
    with attach(optimizer, dict(type='ValueClip', **kwargs)) as handle:
        optimizer.step()
        return handle.stats()


def flat64(tensors):
    return np.concatenate([np.ravel(t.detach().double().numpy()) for t in tensors])


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('clip_value', [0, 1e-6, 0.1, 0.5, 10.0, 1e20])
def test_value_clip_is_bit_identical_to_torch(dtype, clip_value):
    if dtype == torch.float16 and clip_value > 65504:
        pytest.skip('no such float16')
    ours, theirs = make(SHAPES, dtype), make(SHAPES, dtype)
    torch.nn.utils.clip_grad_value_(theirs, clip_value)
    clip(ours, clip_value=clip_value)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.grad, b.grad) and a.grad.dtype == dtype


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize(
    'bounds',
    [
        dict(min=-0.1, max=0.4),
        dict(min=-0.2),
        dict(max=0.2),
        dict(min=0.1, max=0.3),
        dict(min=-0.5, max=-0.1),
    ],
)
def test_range_matches_numpy(dtype, bounds):
    params = make(SHAPES, dtype)
    before = flat64([q.grad for q in params])
    stats = clip(params, **bounds)
    # The bound is rounded to the dtype of the gradient.
    low, high = (
        None if bounds.get(key) is None else torch.tensor(bounds[key], dtype=dtype).double().item()
        for key in ('min', 'max')
    )
    after = flat64([q.grad for q in params])
    np.testing.assert_array_equal(after, np.clip(before, low, high))
    assert stats['grad_norm'] == pytest.approx(np.linalg.norm(before), rel=1e-5)
    assert stats['grad_norm_post'] == pytest.approx(np.linalg.norm(after), rel=1e-5)
    assert stats['clip_fraction'] == pytest.approx(np.mean(before != after), abs=1e-9)
    assert stats['clip_threshold'] == max(abs(value) for value in bounds.values())


def test_every_piece_of_a_large_tensor_is_clipped():
    """On a CPU, large tensors are clipped in pieces, contiguous or not."""
    for make_grad in (
        lambda: torch.randn(777, 513),
        lambda: torch.randn(513, 777).t(),
        lambda: torch.randn(4, 16, 90, 90).contiguous(memory_format=torch.channels_last),
        lambda: torch.randn(2, 400, 400)[:, ::2],
    ):
        grad = make_grad()
        ours = torch.nn.Parameter(torch.zeros(grad.shape))
        ours.grad = grad
        expected = grad.clone().clamp(-0.3, 0.3)
        outside = (grad.abs() > 0.3).double().mean().item()
        strides = grad.stride()
        stats = clip([ours], clip_value=0.3)
        assert torch.equal(ours.grad, expected) and ours.grad.stride() == strides
        assert stats['clip_fraction'] == pytest.approx(outside, rel=1e-9)


@pytest.mark.parametrize('size', [1e20, 1e-30, 3e37])
def test_extreme_gradients_are_clipped_and_measured(size):
    params = make([(40, 30), (17,)], scale=size)
    before = flat64([q.grad for q in params])
    stats = clip(params, clip_value=size)
    assert stats['grad_norm'] == pytest.approx(np.linalg.norm(before), rel=1e-6)
    after = flat64([q.grad for q in params])
    assert stats['grad_norm_post'] == pytest.approx(np.linalg.norm(after), rel=1e-6)
    bound = float(np.float32(size))
    np.testing.assert_array_equal(after, np.clip(before, -bound, bound))
    assert stats['nonfinite'] == 0


def test_missing_gradients_are_left_alone():
    params = make([(3,), (2, 2)])
    params[0].grad = None
    clip(params, clip_value=0.1)
    assert params[0].grad is None and params[1].grad.abs().max() == pytest.approx(0.1)
    params[1].grad = None
    assert clip(params, clip_value=0.1) == {}


def test_infinite_bound_changes_nothing():
    params = make([(3, 3)])
    before = params[0].grad.clone()
    stats = clip(params, clip_value=math.inf)
    assert torch.equal(params[0].grad, before) and stats['clip_fraction'] == 0


gradients = st.lists(
    st.lists(st.floats(min_value=-(2.0**99), max_value=2.0**99, width=32), min_size=1, max_size=6),
    min_size=1,
    max_size=4,
)


def with_grads(values):
    params = [torch.nn.Parameter(torch.zeros(len(v))) for v in values]
    for q, v in zip(params, values, strict=True):
        q.grad = torch.tensor(v)
    return params


@settings(max_examples=60, deadline=None)
@given(gradients, st.floats(min_value=0, max_value=2.0**99, width=32))
def test_value_clip_never_increases_keeps_signs_and_is_idempotent(values, clip_value):
    params = with_grads(values)
    before = flat64([q.grad for q in params])
    clip(params, clip_value=clip_value)
    after = flat64([q.grad for q in params])
    assert (np.abs(after) <= np.abs(before)).all() and (np.abs(after) <= clip_value).all()
    assert (after * before >= 0).all()
    clip(params, clip_value=clip_value)
    np.testing.assert_array_equal(flat64([q.grad for q in params]), after)


@settings(max_examples=40, deadline=None)
@given(gradients, st.floats(min_value=2.0**-20, max_value=2.0**20, width=32), st.integers(-10, 10))
def test_scaled_gradients_and_bound_give_scaled_results(values, clip_value, exponent):
    factor = 2.0**exponent
    plain, scaled = with_grads(values), with_grads(values)
    for q in scaled:
        q.grad *= factor
    clip(plain, clip_value=clip_value)
    clip(scaled, clip_value=clip_value * factor)
    a, b = (flat64([q.grad for q in some]) for some in (plain, scaled))
    normal = np.abs(a) > 2.0**-110
    np.testing.assert_array_equal(b[normal], a[normal] * factor)
