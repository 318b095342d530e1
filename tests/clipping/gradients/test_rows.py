"""Norms computed by rows, against float64, and the cases that stay bit-identical to torch."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gclip_mm import attach
from gclip_mm.clipping.gradients import rows as rows_module
from gclip_mm.clipping.gradients.norms import finish_norms, read_by_rows, tensor_norms
from gclip_mm.clipping.gradients.rows import NARROW, WIDE, in_line, row_norms

LARGE = 1 << 16


def norm64(tensor):
    return torch.linalg.vector_norm(tensor.double())


@pytest.mark.parametrize('size', [LARGE, LARGE + 1, LARGE + WIDE - 1, LARGE * 2])
def test_row_norms_match_float64(size):
    tensors = [torch.randn(size), torch.randn(7), torch.zeros(LARGE), torch.randn(0)]
    expected = torch.stack([norm64(t) for t in tensors])
    # Norms by rows are more accurate than one long chain of float32 additions.
    torch.testing.assert_close(
        tensor_norms(tensors, exact=False).double(), expected, rtol=1e-6, atol=0
    )
    torch.testing.assert_close(tensor_norms(tensors).double(), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize('width', [NARROW, WIDE, 100])
def test_row_norms_follow_memory_order(width):
    tensor = torch.randn(LARGE + 100)
    norms = row_norms([torch.randn(3), tensor], width)
    assert norms.places == [1] and norms.parts[0] is None
    expected = torch.stack([norm64(row) for row in tensor.split(width)])
    torch.testing.assert_close(norms.parts[1].double(), expected, rtol=1e-6, atol=0)
    assert norms.flat.data_ptr() == norms.parts[1].data_ptr()


@pytest.mark.parametrize(
    'make',
    [
        lambda: torch.randn(4, 64, 32, 16).to(memory_format=torch.channels_last),
        lambda: torch.randn(2, 8, 16, 32, 16).to(memory_format=torch.channels_last_3d),
        lambda: torch.randn(600, 500).t(),
        lambda: torch.randn(600, 500)[:, ::2],
        lambda: torch.randn(600, 500)[3:],
        lambda: torch.randn(1).expand(LARGE),
    ],
)
def test_norms_match_float64_in_any_memory_layout(make):
    tensor = make()
    line = in_line(tensor)
    assert (line is None) == (tensor.stride()[-1] in (0, 2))
    if line is not None:
        assert line.data_ptr() == tensor.data_ptr() and line.numel() == tensor.numel()
        assert torch.equal(line.sort().values, tensor.reshape(-1).sort().values)
    torch.testing.assert_close(
        tensor_norms([tensor], exact=False)[0].double(),
        norm64(tensor),
        # Torch's own reduction is less accurate.
        rtol=1e-6 if line is not None else 1e-3,
        atol=0,
    )


def test_small_or_non_float32_tensors_are_not_read_by_rows():
    assert row_norms([torch.randn(LARGE - 1)]) is None
    assert row_norms([torch.randn(LARGE).double()]) is None
    assert row_norms([torch.randn(LARGE).bfloat16()]) is None
    assert read_by_rows([torch.randn(LARGE), torch.randn(3).double()]) is None
    mixed = [torch.randn(LARGE), torch.randn(LARGE).bfloat16(), torch.randn(3).double()]
    expected = torch.stack([norm64(t) for t in mixed])
    torch.testing.assert_close(
        tensor_norms(mixed, exact=False).double(), expected, rtol=1e-4, atol=0
    )


@pytest.mark.parametrize('size', [1e20, 1e-30, 3e37, math.inf, math.nan])
def test_norms_of_extreme_sizes_match_float64(size):
    tensor = torch.randn(LARGE) * (size if math.isfinite(size) else 1)
    if not math.isfinite(size):
        tensor[777] = size
    torch.testing.assert_close(
        tensor_norms([tensor], exact=False)[0].double(),
        norm64(tensor),
        rtol=1e-6,
        atol=0,
        equal_nan=True,
    )


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6, width=32), max_size=30), st.integers(1, 6))
def test_norms_of_any_numbers_and_row_width_match_float64(numbers, width):
    tensor = torch.tensor(numbers)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows_module, '_LARGE', 1)
        rows = read_by_rows([tensor], width)
        norms = [tensor.norm()] if rows is None else rows.norms([tensor])
        got = finish_norms(norms, [tensor])[0].double()
    torch.testing.assert_close(got, norm64(tensor), rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize('numel', [0, 3, 5000])
def test_inf_norm_is_the_largest_magnitude(numel):
    tensor = torch.randn(numel)
    assert tensor_norms([tensor], math.inf)[0] == (tensor.abs().max() if numel else 0)
    if numel:
        tensor[numel // 2] = -math.inf
        assert tensor_norms([tensor], math.inf)[0] == math.inf
        tensor[0] = math.nan
        assert tensor_norms([tensor], math.inf)[0].isnan()


@pytest.mark.parametrize('fused', [False, True])
def test_unfused_norm_is_bit_identical_to_torch(fused):
    """The float32 norm of a large tensor depends on the order of additions; folding may differ."""
    torch.manual_seed(0)
    ours, theirs = (nn.Parameter(torch.zeros(3 * LARGE)) for _ in range(2))
    ours.grad = torch.randn(3 * LARGE)
    theirs.grad = ours.grad.clone()
    exact = norm64(ours.grad)
    norm = torch.nn.utils.clip_grad_norm_([theirs], 1.0)
    optimizer = torch.optim.SGD([ours], lr=0.0, fused=fused)
    handle = attach(optimizer, dict(max_norm=1.0))
    optimizer.step()
    logged = handle.stats()['grad_norm']
    if fused:
        assert logged == pytest.approx(float(exact), rel=1e-6)
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=0)
    else:
        assert logged == float(norm)
        assert torch.equal(ours.grad, theirs.grad)
