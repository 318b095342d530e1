"""Clamping outliers: every element outside the range is clamped, all others keep their bits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gclip_mm.clipping.gradients import outliers, pieces
from gclip_mm.clipping.gradients import rows as rows_module
from gclip_mm.clipping.gradients.norms import finish_norms, read_by_rows, tensor_norms
from gclip_mm.clipping.gradients.outliers import OutlierEdit
from gclip_mm.clipping.gradients.rows import NARROW
from gclip_mm.compat import foreach_copy_
from tests.clipping.cases import on_device

LARGE = 1 << 16


def clamp_all(grads, low, high, width=NARROW, at_once=False):
    """Counts (N,) and norms (N,) after clamping all gradients in place."""
    rows = read_by_rows(grads, width)
    norms = tensor_norms(grads) if rows is None else finish_norms(rows.norms(grads), grads)
    edit = OutlierEdit(grads, norms, rows)

    def clamp(values, out):
        torch.clamp(values, low, high, out=out)

    if at_once:
        edit.apply_to_all(low, high, clamp)
    else:
        for i in range(len(grads)):
            edit.apply(i, low, high, clamp)
    return edit.counts, edit.norms()


def check(grads, low, high, rtol=2e-6, width=NARROW):
    before = [grad.clone() for grad in grads]
    for at_once in (True, False):
        foreach_copy_(grads, before)
        _check(grads, before, low, high, rtol, width, at_once)


def _check(grads, before, low, high, rtol, width, at_once):
    counts, norms = clamp_all(grads, low, high, width, at_once)
    for i, (old, new) in enumerate(zip(before, grads, strict=True)):
        expected = old.clamp(low, high)
        assert torch.equal(new, expected)
        assert counts[i] == (old != expected).sum()
        torch.testing.assert_close(
            norms[i].double(), torch.linalg.vector_norm(expected.double()), rtol=rtol, atol=0
        )


@pytest.mark.parametrize('share', [0.0, 1e-5, 1e-3, 0.02, 0.5, 1.0])
@pytest.mark.parametrize(('low', 'high'), [(-1.0, 1.0), (None, 1.0), (-0.5, None), (-2.0, 0.7)])
@pytest.mark.parametrize('size', [LARGE, LARGE + 5, 500_000])
def test_clamping_matches_torch_for_any_share_of_outliers(share, low, high, size):
    """A small share is handled by gathered rows, a large share by a pass over the tensor."""
    rng = torch.Generator().manual_seed(0)
    grads = [torch.randn(size, generator=rng) * 0.01, torch.randn(50, 60, generator=rng)]
    far = torch.rand(size, generator=rng) < share
    grads[0][far] *= 1000
    check(grads, low, high)


@pytest.mark.parametrize('place', [0, NARROW - 1, NARROW, LARGE // 2, LARGE - 1, LARGE + 9])
def test_single_outlier_is_clamped_and_no_other_element_changes(place):
    grad = torch.full((LARGE + 10,), 1e-3)
    grad[place] = -5.0
    version = grad.clone()
    check([grad], -1.0, 1.0)
    assert (grad != version).sum() == 1 and grad[place] == -1


@pytest.mark.parametrize('at_once', [True, False])
def test_gradient_within_the_bounds_is_not_written(at_once):
    grad = torch.randn(3 * LARGE).clamp_(-1, 1)
    version = grad._version
    counts, norms = clamp_all([grad], -1.0, 1.0, at_once=at_once)
    assert grad._version == version and counts[0] == 0
    assert norms[0] == pytest.approx(float(grad.double().norm()), rel=1e-6)


@pytest.mark.parametrize(
    'layout',
    [
        lambda x: x.view(10, 20, 30, 20).to(memory_format=torch.channels_last),
        lambda x: x.view(300, 400).t(),
        lambda x: x.view(300, 400)[:, ::2],
    ],
)
def test_clamping_matches_torch_in_any_memory_layout(layout):
    # Not every layout has rows, and torch's own norm of 10^5 elements is less accurate.
    check([layout(torch.randn(120_000))], -0.5, 0.25, rtol=1e-4)
    check([layout(torch.randn(120_000) * 0.2)], -0.9, 0.9, rtol=1e-4)


def test_small_tensors_clamped_together_are_counted_separately():
    """More elements than the scratch memory holds, with empty, strided and large tensors mixed."""
    rng = torch.Generator().manual_seed(1)
    shapes = [(0,), (7,), (), (30, 41), (LARGE,), (16_000,), *[(16_383,)] * 9, (1,)]
    grads = [torch.randn(shape, generator=rng) for shape in shapes]
    grads[3] = grads[3].t()[::2]
    quiet = grads[5].clamp_(-0.5, 0.5)
    version = quiet._version
    before = [grad.clone() for grad in grads]
    clamp_all(grads, -0.5, 0.5, at_once=True)
    assert quiet._version == version
    foreach_copy_(grads, before)
    check(grads, -0.5, 0.5, rtol=1e-5)


def test_small_tensors_of_several_dtypes_are_clamped_and_keep_nan():
    grads = [
        torch.tensor([2.0, 0.1]),
        torch.tensor([0.3, 3.0, -9.0]).half(),
        torch.ones(2).double(),
    ]
    counts, _ = clamp_all(grads, -0.3, 0.3, at_once=True)
    assert counts.tolist() == [1, 2, 2]
    assert grads[1].tolist() == torch.tensor([0.3, 0.3, -0.3]).half().tolist()
    grads = [torch.tensor([float('nan'), 0.2]), torch.tensor([0.1])]
    clamp_all(grads, -0.3, 0.3, at_once=True)
    assert torch.isnan(grads[0][0]) and grads[0][1] == 0.2 and grads[1] == 0.1


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_clamped_like_torch(dtype):
    for scale in (1.0, 0.1):
        grads = [(torch.randn(LARGE + 3) * scale).to(dtype)]
        before = grads[0].clone()
        counts, norms = clamp_all(grads, -0.3, 0.3)
        expected = before.clamp(-0.3, 0.3)
        assert torch.equal(grads[0], expected)
        assert counts[0] == (before != expected).sum()
        assert norms[0] == pytest.approx(float(expected.double().norm()), rel=1e-4)


def test_bounds_whose_squares_underflow_float32_are_applied():
    grad = torch.full((LARGE,), 1e-30)
    grad[5] = -3e-25
    check([grad], -1e-27, 1e-27)
    assert grad[5] == torch.tensor(-1e-27)


def test_count_exceeds_the_range_of_float16():
    grad = torch.ones(LARGE * 2, dtype=torch.float16)
    counts, _ = clamp_all([grad], -0.5, 0.5)
    assert counts[0] == LARGE * 2


def test_device_path_gives_the_same_results_without_host_reads():
    grads = [torch.randn(LARGE), torch.randn(5)]
    expected = [grad.clamp(-0.5, 0.5) for grad in grads]
    outside = [(grad.abs() > 0.5).sum().double() for grad in grads]
    with on_device():
        counts, norms = clamp_all(grads, -0.5, 0.5)
    assert all(torch.equal(a, b) for a, b in zip(grads, expected, strict=True))
    assert counts.tolist() == [float(n) for n in outside]
    torch.testing.assert_close(norms, torch.stack([x.norm() for x in expected]))


numbers = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(numbers, min_size=1, max_size=3),
    st.floats(-10, 10, width=32),
    st.floats(0, 20, width=32),
    st.integers(1, 4),
    st.integers(4, 9),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.sampled_from([2, 12]),
)
def test_any_numbers_with_any_bounds_match_torch(values, low, span, width, chunk, many, large):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows_module, '_LARGE', large)
        patch.setattr(pieces, '_CHUNK_CPU', chunk)
        patch.setattr(outliers, '_MANY', many)
        check([torch.tensor(v) for v in values], low, low + span, width=width)
