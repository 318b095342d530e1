import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gclip_mm import attach

SHAPES = [(), (5,), (3, 4), (2, 3, 5), (4, 2, 3, 3), (2, 2, 3, 2, 3), (7, 1), (1, 6), (1, 1)]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def make(shapes, dtype=torch.float32, seed=0, scale=1.0):
    """Random parameters with random gradients."""
    generator = torch.Generator().manual_seed(seed)
    params = []
    for shape in shapes:
        p = nn.Parameter(torch.randn(shape, generator=generator).to(dtype))
        p.grad = (torch.randn(shape, generator=generator) * scale).to(dtype)
        params.append(p)
    return params


def clip(params, model=None, **kwargs):
    """Clip the gradients in place by the engine, without changing the parameters."""
    optimizer = torch.optim.SGD(params, lr=0.0)
    with attach(optimizer, dict(type='AGC', **kwargs), model=model) as handle:
        optimizer.step()
        return handle.stats()


def unit_rows(array):
    """The units of a parameter without a module, by the definition of NFNets: one unit if the
    parameter is a vector after removing axes of size 1, else one per index of the first axis.
    """
    if np.squeeze(array).ndim <= 1:
        return [(...,)]
    return [(i,) for i in range(array.shape[0])]


def agc64(w, g, clip_factor=0.01, eps=1e-3):
    """Equation 3 of NFNets in float64: clipped gradient, clipped flag and limit of each unit."""
    w, g = w.astype(np.float64), g.astype(np.float64)
    out, clipped, limits = g.copy(), [], []
    for unit in unit_rows(w):
        limit = clip_factor * max(np.sqrt((w[unit] ** 2).sum()), eps)
        norm = np.sqrt((g[unit] ** 2).sum())
        if norm > limit:
            out[unit] = g[unit] * (limit / max(norm, 1e-6))
        clipped.append(norm > limit)
        limits.append(limit)
    return out, clipped, limits


def f64(tensor):
    return tensor.detach().double().numpy()


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('clip_factor', [0, 1e-4, 0.01, 0.5, 2.0])
@pytest.mark.parametrize('scale', [1.0, 1e-3])
def test_agc_matches_the_nfnets_definition(dtype, clip_factor, scale):
    params = make(SHAPES, dtype, scale=scale)
    before = [f64(q.grad).copy() for q in params]
    results = [agc64(f64(q), g, clip_factor) for q, g in zip(params, before, strict=True)]
    stats = clip(params, clip_factor=clip_factor)
    rounding = max(torch.finfo(dtype).eps, 2e-6)
    for q, (expected, _, _) in zip(params, results, strict=True):
        assert q.grad.dtype == dtype
        smallest = torch.finfo(dtype).smallest_normal
        np.testing.assert_allclose(f64(q.grad), expected, rtol=rounding, atol=smallest)
    clipped = [flag for _, flags, _ in results for flag in flags]
    assert stats['clip_fraction'] == pytest.approx(np.mean(clipped), abs=1e-9)
    total = math.sqrt(sum((g**2).sum() for g in before))
    post = math.sqrt(sum((g**2).sum() for g, _, _ in results))
    assert stats['grad_norm'] == pytest.approx(total, rel=1e-5)
    assert stats['grad_norm_post'] == pytest.approx(post, rel=1e-5, abs=1e-30)
    assert stats['clip_coef'] == pytest.approx(post / total, rel=1e-5, abs=1e-30)
    bound = math.sqrt(sum(limit**2 for _, _, limits in results for limit in limits))
    assert stats['clip_threshold'] == pytest.approx(bound, rel=1e-5)


def test_mixed_dtypes_match_the_definition():
    """A float32 model with a float64 head, in either order."""
    for dtypes in (
        [torch.float32, torch.float64],
        [torch.float64, torch.float32],
        [torch.bfloat16, torch.float32, torch.float64],
    ):
        params = [q for i, d in enumerate(dtypes) for q in make([(3, 4), (5,)], d, seed=i)]
        expected = [agc64(f64(q), f64(q.grad))[0] for q in params]
        clip(params)
        for q, want in zip(params, expected, strict=True):
            rounding = max(torch.finfo(q.dtype).eps, 2e-6)
            np.testing.assert_allclose(f64(q.grad), want, rtol=rounding)


def test_empty_and_missing_gradients_are_left_alone():
    params = make([(0, 5), (5, 0), (0,), (3, 4), (2, 2)])
    params[4].grad = None
    expected = agc64(f64(params[3]), f64(params[3].grad))[0]
    clip(params)
    np.testing.assert_allclose(f64(params[3].grad), expected, rtol=2e-6)
    assert params[4].grad is None
    only_empty = make([(0, 5), (5, 0)])
    assert clip(only_empty)['grad_norm'] == 0
    params = make([(3,)])
    params[0].grad = None
    assert clip(params) == {}


def test_missing_gradients_may_differ_between_steps():
    params = make([(3, 4), (5,), (2, 3), (4,)])
    optimizer = torch.optim.SGD(params, lr=0.0)
    attach(optimizer, dict(type='AGC'))
    for step in range(40):
        grads = [torch.randn(q.shape, dtype=q.dtype) for q in params]
        for i, (q, g) in enumerate(zip(params, grads, strict=True)):
            q.grad = g.clone() if (step >> i) & 1 else None
        optimizer.step()
        for i, (q, g) in enumerate(zip(params, grads, strict=True)):
            if (step >> i) & 1:
                want = agc64(f64(q), f64(g))[0]
                np.testing.assert_allclose(f64(q.grad), want, rtol=2e-6)
            else:
                assert q.grad is None


@pytest.mark.parametrize('permute', [(0, 1, 2, 3), (1, 0, 2, 3), (3, 2, 1, 0), (0, 2, 3, 1)])
def test_any_memory_layout_is_clipped_in_place(permute):
    q = nn.Parameter(torch.randn(4, 3, 5, 2))
    strided = torch.randn(4, 3, 5, 2).permute(permute).contiguous()
    inverse = [permute.index(i) for i in range(4)]
    grad = strided.permute(inverse)
    q.grad = torch.empty(4, 3, 5, 2)
    q.grad = grad
    expected = agc64(f64(q), f64(grad).copy())[0]
    clip([q])
    assert q.grad is grad
    np.testing.assert_allclose(f64(q.grad), expected, rtol=2e-6)


def test_channels_last_model_matches_the_definition():
    model = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)
    model(x).square().sum().backward()
    expected = agc64(f64(model.weight), f64(model.weight.grad).copy())[0]
    clip(list(model.parameters()), model)
    np.testing.assert_allclose(f64(model.weight.grad), expected, rtol=2e-6)


@pytest.mark.parametrize('size', [1e20, 3e37, 1e-30])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_extreme_gradients_are_measured_and_clipped(size, dtype):
    params = make([(40, 30), (17,), (4, 3, 3, 3)], dtype, scale=size)
    # The result for one ordinary unit among them must stay exact.
    params[0].grad[3] = 1e-4
    before = [f64(q.grad).copy() for q in params]
    stats = clip(params)
    norm = math.sqrt(sum(((g / size) ** 2).sum() for g in before)) * size
    assert stats['grad_norm'] == pytest.approx(norm, rel=1e-6)
    assert stats['nonfinite'] == 0
    rounding = 2e-6 if dtype == torch.float32 else 2**-8
    for q, g in zip(params, before, strict=True):
        want = agc64(f64(q), g)[0]
        assert np.abs(want).max() > 0
        np.testing.assert_allclose(f64(q.grad), want, rtol=rounding, atol=1e-37)


def test_weight_initialised_to_zero_still_learns():
    """With zero-init (a gate, the last layer of a residual branch), eps replaces the norm."""
    torch.manual_seed(0)
    layer = nn.Linear(4, 3)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    handle = attach(optimizer, dict(type='AGC', clip_factor=0.05), model=layer)
    x, y = torch.randn(64, 4), torch.randn(64, 3)
    losses = []
    for step in range(200):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(layer(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if step == 0:
            # |g| = 0.05 * 1e-3 for each unit.
            assert layer.weight.norm(dim=1).tolist() == pytest.approx([5e-5] * 3, rel=1e-4)
    assert losses[-1] < 0.97 * losses[0]
    assert handle.engine.steps == 200


def test_limit_follows_the_weight_in_each_step():
    q = nn.Parameter(torch.full((2, 3), 2.0))
    optimizer = torch.optim.SGD([q], lr=0.0)
    attach(optimizer, dict(type='AGC', clip_factor=0.1))
    for factor in (1.0, 3.0, 0.5):
        with torch.no_grad():
            q.fill_(2.0 * factor)
        q.grad = torch.full((2, 3), 10.0)
        optimizer.step()
        # |w| = 2 f sqrt(3) in each row, so the clipped row has that times 0.1.
        np.testing.assert_allclose(f64(q.grad), 0.2 * factor, rtol=1e-6)


rows = st.lists(
    st.lists(st.floats(min_value=-(2.0**60), max_value=2.0**60, width=32), min_size=3, max_size=3),
    min_size=2,
    max_size=4,
)


@settings(max_examples=60, deadline=None)
@given(rows, st.integers(0, 2**31), st.floats(min_value=1e-3, max_value=10))
def test_agc_never_increases_keeps_directions_and_is_idempotent(values, seed, clip_factor):
    g = np.array(values, dtype=np.float32).astype(np.float64)
    w = np.random.default_rng(seed).normal(size=g.shape).astype(np.float32)
    q = nn.Parameter(torch.tensor(w))
    q.grad = torch.tensor(g, dtype=torch.float32)
    clip([q], clip_factor=clip_factor)
    after = f64(q.grad).copy()
    norms = np.sqrt((g**2).sum(1))
    limits = clip_factor * np.maximum(np.linalg.norm(w.astype(np.float64), axis=1), 1e-3)
    assert (np.abs(after) <= np.abs(g)).all()
    assert (np.linalg.norm(after, axis=1) <= limits * (1 + 1e-5)).all()
    coef = np.minimum(1, limits / np.maximum(norms, 1e-6))
    np.testing.assert_allclose(after, g * coef[:, None], rtol=1e-5, atol=1e-37)
    clip([q], clip_factor=clip_factor)
    np.testing.assert_allclose(f64(q.grad), after, rtol=1e-6, atol=1e-37)


@settings(max_examples=40, deadline=None)
@given(rows, st.integers(0, 2**31), st.integers(-6, 12))
def test_scaled_weights_and_gradients_give_scaled_results(values, seed, exponent):
    """Scaling weights and gradients by one factor scales the result by it."""
    factor = 2.0**exponent
    g = torch.tensor(values)
    w = torch.from_numpy(np.random.default_rng(seed).normal(size=g.shape)).float() + 3
    plain, scaled = nn.Parameter(w), nn.Parameter(w * factor)
    plain.grad, scaled.grad = g.clone(), g * factor
    clip([plain])
    clip([scaled])
    np.testing.assert_allclose(f64(scaled.grad), f64(plain.grad) * factor, rtol=1e-5, atol=1e-36)
