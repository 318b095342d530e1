import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gclip_mm import attach

SHAPES = [(), (5,), (3, 4), (2, 3, 5), (4, 2, 3, 3), (2, 2, 3, 2, 3), (1,), (7, 1)]
ORDERS = [0.5, 1, 2, 3, math.inf]


def make(shapes, dtype=torch.float32, seed=0, scale=1.0):
    """Parameters with random gradients."""
    generator = torch.Generator().manual_seed(seed)
    params = []
    for shape in shapes:
        p = torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype))
        p.grad = (torch.randn(shape, generator=generator) * scale).to(dtype)
        params.append(p)
    return params


def clip(params, **kwargs):
    """Clip the gradients in place by the engine, without changing the parameters."""
    optimizer = torch.optim.SGD(params, lr=0.0)
    with attach(optimizer, dict(type='NormClip', **kwargs)) as handle:
        optimizer.step()
        return handle.stats()


def flat64(tensors):
    return np.concatenate([np.ravel(t.detach().double().numpy()) for t in tensors])


def norm64(values, p):
    """p-norm in float64, independent of torch."""
    values = np.abs(values)
    if values.size == 0:
        return 0.0
    top = values.max()
    if p == math.inf or top == 0:
        return float(top)
    return float(top * ((values / top) ** p).sum() ** (1 / p))


@pytest.mark.parametrize('p', ORDERS)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('max_norm', [0.3, 1e4])
def test_norm_clip_is_bit_identical_to_torch(p, dtype, max_norm):
    ours, theirs = make(SHAPES, dtype), make(SHAPES, dtype)
    norm = torch.nn.utils.clip_grad_norm_(theirs, max_norm, p)
    stats = clip(ours, max_norm=max_norm, norm_type=p)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.grad, b.grad)
    assert stats['grad_norm'] == float(norm)


@pytest.mark.parametrize('p', ORDERS)
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_matches_float64_within_rounding(p, dtype):
    params = make(SHAPES, dtype)
    before = flat64([q.grad for q in params])
    stats = clip(params, max_norm=0.5, norm_type=p)
    norm = norm64(before, p)
    # The norm accumulates in float32, although the gradients have half precision.
    assert stats['grad_norm'] == pytest.approx(norm, rel=1e-5)
    expected = before * min(1, 0.5 / (norm + 1e-6))
    rounding = torch.finfo(dtype).eps
    np.testing.assert_allclose(
        flat64([q.grad for q in params]), expected, rtol=rounding, atol=torch.finfo(dtype).tiny
    )
    assert all(q.grad.dtype == dtype for q in params)


def test_mixed_dtypes_match_float64():
    params = make([(4, 3)]) + make([(5,)], torch.float64, 1) + make([(2, 2)], torch.bfloat16, 2)
    before = flat64([q.grad for q in params])
    stats = clip(params, max_norm=0.5)
    norm = norm64(before, 2)
    assert stats['grad_norm'] == pytest.approx(norm, rel=1e-6)
    after = flat64([q.grad for q in params])
    np.testing.assert_allclose(after[:17], before[:17] * 0.5 / norm, rtol=1e-5)
    np.testing.assert_allclose(after[17:], before[17:] * 0.5 / norm, rtol=2**-8)


@pytest.mark.parametrize('p', ORDERS)
def test_empty_and_missing_gradients_match_torch(p):
    ours, theirs = make([(3,), (0,), (0, 4), (2, 2)]), make([(3,), (0,), (0, 4), (2, 2)])
    ours[0].grad = theirs[0].grad = None
    if p == math.inf:
        # torch cannot take the maximum of an empty tensor; empty gradients add nothing.
        torch.nn.utils.clip_grad_norm_(theirs[3:], 0.1, p)
    else:
        torch.nn.utils.clip_grad_norm_(theirs, 0.1, p)
    clip(ours, max_norm=0.1, norm_type=p)
    assert ours[0].grad is None
    for a, b in zip(ours[1:], theirs[1:], strict=True):
        assert torch.equal(a.grad, b.grad)


def test_zero_gradient_among_float64_gradients_matches_torch():
    ours, theirs = (make([(3, 2), (4,)], torch.float64) for _ in range(2))
    ours[0].grad.zero_()
    theirs[0].grad.zero_()
    norm = torch.nn.utils.clip_grad_norm_(theirs, 0.1)
    assert clip(ours, max_norm=0.1)['grad_norm'] == float(norm)
    assert torch.equal(ours[1].grad, theirs[1].grad)


def test_step_without_gradients_records_nothing():
    params = make([(3,)])
    params[0].grad = None
    assert clip(params, max_norm=1.0) == {}


def test_step_with_only_empty_gradients_has_norm_zero():
    stats = clip(make([(0,), (0, 3)]), max_norm=1.0)
    assert stats['grad_norm'] == 0 and stats['nonfinite'] == 0


def test_any_memory_layout_matches_torch_and_keeps_its_strides():
    base = torch.randn(8, 6, 4, 4)
    layouts = [
        base.clone().contiguous(memory_format=torch.channels_last),
        base.transpose(0, 1),
        base[::2, :, 1:, ::3],
        base.permute(3, 2, 1, 0),
    ]
    for grad in layouts:
        ours, theirs = torch.nn.Parameter(grad.clone()), torch.nn.Parameter(grad.clone())
        ours.grad = torch.empty_like(grad, memory_format=torch.preserve_format).copy_(grad)
        if ours.grad.stride() != grad.stride():
            storage = torch.empty(base.numel()).as_strided(grad.shape, grad.stride())
            ours.grad = storage.copy_(grad)
        strides = ours.grad.stride()
        theirs.grad = grad.clone()
        torch.nn.utils.clip_grad_norm_([theirs], 1.0)
        clip([ours], max_norm=1.0)
        assert ours.grad.stride() == strides
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=0)


@pytest.mark.parametrize('p', [1, 2, 3, 10, math.inf])
@pytest.mark.parametrize('size', [1e20, 1e-30, 3e37, 1e-12, 1e-4])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_extreme_gradients_are_measured_and_clipped(size, p, dtype):
    params = make([(40, 30), (17,), (3, 3)], dtype, scale=size)
    before = flat64([q.grad for q in params])
    assert np.isfinite(before).all()
    norm = norm64(before, p)
    max_norm = norm / 8
    stats = clip(params, max_norm=max_norm, norm_type=p)
    assert stats['grad_norm'] == pytest.approx(norm, rel=1e-6)
    assert stats['nonfinite'] == 0
    # For norms below 1e-6, the 1e-6 in the formula dominates.
    coef = max_norm / (norm + 1e-6)
    if size * coef > 1e-37:
        after = flat64([q.grad for q in params])
        rounding = 1e-5 if dtype == torch.float32 else 2**-8
        large = np.abs(before) > 0.1 * size
        np.testing.assert_allclose(after[large], before[large] * coef, rtol=rounding)
        assert np.any(after != 0)


def test_norm_is_exact_if_the_sum_of_squares_overflows_float32():
    # The square of 1.8e19 fits in float32, but the sum of two such squares does not.
    params = [torch.nn.Parameter(torch.zeros(1)) for _ in range(4)]
    for q in params:
        q.grad = torch.full((1,), 1.5e19)
    stats = clip(params, max_norm=1.0)
    assert stats['grad_norm'] == pytest.approx(3e19, rel=1e-6)
    assert params[0].grad.item() == pytest.approx(0.5, rel=1e-6)


def test_norm_is_exact_if_squares_overflow_float64():
    params = [torch.nn.Parameter(torch.zeros(2, dtype=torch.float64)) for _ in range(2)]
    for q in params:
        q.grad = torch.full((2,), 1e200, dtype=torch.float64)
    stats = clip(params, max_norm=1.0)
    assert stats['grad_norm'] == pytest.approx(2e200, rel=1e-12)
    assert params[0].grad[0].item() == pytest.approx(0.5, rel=1e-9)


def test_min_norm_scales_up_a_small_gradient():
    for size in (1e-4, 1e-10, 1e-20, 1e-30):
        params = make([(3, 4), (5,)], scale=size)
        before = flat64([q.grad for q in params])
        stats = clip(params, max_norm=1.0, min_norm=0.01)
        after = flat64([q.grad for q in params])
        assert np.linalg.norm(after) == pytest.approx(0.01, rel=1e-5)
        np.testing.assert_allclose(after / 0.01, before / norm64(before, 2), rtol=1e-5)
        assert stats['grad_norm_post'] == pytest.approx(0.01, rel=1e-5)


def test_max_norm_wins_if_a_schedule_moves_it_below_min_norm():
    param = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([param], lr=0.0)
    schedule = dict(type='constant', param_name='max_norm', factor=0.1, end=100)
    handle = attach(optimizer, dict(max_norm=1.0, min_norm=0.5, schedule=[schedule]))
    for value in (0.3, 0.05, 5.0):
        param.grad = torch.tensor([value])
        optimizer.step()
        assert param.grad.item() == pytest.approx(0.1, rel=1e-5)
        assert handle.stats()['clip_threshold'] == pytest.approx(0.1)


def test_min_norm_leaves_zero_and_subnormal_gradients_finite():
    zero = make([(3,)], scale=0.0)
    clip(zero, max_norm=1.0, min_norm=0.01)
    assert torch.equal(zero[0].grad, torch.zeros(3))
    tiny = [torch.nn.Parameter(torch.zeros(3))]
    tiny[0].grad = torch.tensor([1e-45, 0.0, -1e-45])
    clip(tiny, max_norm=1e3, min_norm=1e2)
    assert torch.isfinite(tiny[0].grad).all()


def test_norm_between_min_norm_and_max_norm_changes_nothing():
    params = make([(3, 4)])
    before = params[0].grad.clone()
    clip(params, max_norm=1e3, min_norm=1e-3)
    assert torch.equal(params[0].grad, before)


def test_infinite_max_norm_changes_nothing_and_zero_gives_zeros():
    params = make([(3, 4)])
    before = params[0].grad.clone()
    # Stock configs use an infinite threshold to log the norm without clipping.
    stats = clip(params, max_norm=math.inf)
    assert torch.equal(params[0].grad, before)
    assert stats['clip_threshold'] == math.inf and stats['clip_coef'] == 1
    clip(params, max_norm=0)
    assert torch.equal(params[0].grad, torch.zeros(3, 4))


def test_record_holds_all_log_keys_with_hand_computed_values():
    params = [torch.nn.Parameter(torch.zeros(2))]
    params[0].grad = torch.tensor([3.0, 4.0])
    stats = clip(params, max_norm=2.0)
    assert stats == dict(
        grad_norm=5.0,
        grad_norm_post=pytest.approx(2.0, rel=1e-6),
        clip_coef=pytest.approx(0.4, rel=1e-6),
        clip_threshold=2.0,
        clip_fraction=1.0,
        nonfinite=0.0,
    )


gradients = st.lists(
    st.lists(
        st.floats(min_value=-(2.0**99), max_value=2.0**99, width=32),
        min_size=1,
        max_size=6,
    ),
    min_size=1,
    max_size=4,
)
orders = st.sampled_from(ORDERS)
bounds = st.floats(min_value=1e-3, max_value=1e3)


def with_grads(values):
    params = [torch.nn.Parameter(torch.zeros(len(v))) for v in values]
    for q, v in zip(params, values, strict=True):
        q.grad = torch.tensor(v)
    return params


@settings(max_examples=60, deadline=None)
@given(gradients, orders, bounds)
def test_norm_clip_never_increases_keeps_direction_and_is_idempotent(values, p, max_norm):
    params = with_grads(values)
    before = flat64([q.grad for q in params])
    clip(params, max_norm=max_norm, norm_type=p)
    after = flat64([q.grad for q in params])
    norm = norm64(after, p)
    assert norm <= norm64(before, p) * (1 + 1e-6)
    assert norm <= max_norm * (1 + 1e-5)
    # One coefficient applies to all elements; compare those with full float32 precision.
    coef = min(1.0, max_norm / (norm64(before, p) + 1e-6))
    big = np.abs(before * coef) > 1e-30
    np.testing.assert_allclose(after[big], (before * coef)[big], rtol=1e-5)
    clip(params, max_norm=max_norm, norm_type=p)
    again = flat64([q.grad for q in params])
    # The 1e-6 in the formula shortens a gradient that is already at the bound.
    np.testing.assert_allclose(again[big], after[big], rtol=1e-5 + 2e-6 / max_norm)


@settings(max_examples=40, deadline=None)
@given(gradients, orders, st.floats(min_value=0.1, max_value=1e3), st.integers(-6, 6))
def test_scaled_gradients_and_bound_give_scaled_results(values, p, max_norm, exponent):
    """Scaling gradients and bound by one factor scales the result by it."""
    factor = 2.0**exponent
    plain, scaled = with_grads(values), with_grads(values)
    for q in scaled:
        q.grad *= factor
    clip(plain, max_norm=max_norm, norm_type=p)
    clip(scaled, max_norm=max_norm * factor, norm_type=p)
    a, b = (flat64([q.grad for q in some]) for some in (plain, scaled))
    # The 1e-6 in the denominator does not scale.
    np.testing.assert_allclose(b, a * factor, rtol=2e-3, atol=1e-30)
