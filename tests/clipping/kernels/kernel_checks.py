"""Tests of the Triton kernels, on any device.

``test_kernels.py`` runs this file in a separate process under Triton's interpreter, which has to be
selected before Triton is imported. ``tests/gpu/test_kernels.py`` runs it on a GPU. By hand::

    TRITON_INTERPRET=1 python -m pytest tests/clipping/kernels/kernel_checks.py
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import math
import mmap
import os
import warnings
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip('triton', reason='the kernels need Triton')

from gclip_mm import attach
from gclip_mm.clipping import kernels
from gclip_mm.clipping.kernels import (
    MultiTensor,
    Units,
    multi_tensor,
    multi_tensor_kernels,
)

from ..cases import Probe, on_device

INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'
DEVICE = torch.device('cpu' if INTERPRETED else 'cuda')
needs_kernels = pytest.mark.skipif(
    not INTERPRETED and not torch.cuda.is_available(),
    reason='needs a GPU, or TRITON_INTERPRET=1 in the environment',
)
pytestmark = needs_kernels
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
ORDERS = [1.0, 2.0, 3.0, 0.5, math.inf]
#: Relative error of a rounding to the dtype, and of a product rounded before.
ROUNDING = {torch.float32: 2.0**-23, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}
RULES = {
    'AGC': dict(type='AGC', clip_factor=0.05),
    'ParamNormClip': dict(type='ParamNormClip', max_norm=0.5),
    'ParamNormClip carry': dict(type='ParamNormClip', max_norm=0.5, carry=True),
    'ParamNormClip inf': dict(type='ParamNormClip', max_norm=0.1, norm_type='inf'),
    'BlockRMSClip': dict(type='BlockRMSClip', threshold=0.2),
    'AdaGC': dict(type='AdaGC', warmup_steps=2, rel=1.01, beta=0.9),
    'GradientStabilizer': dict(type='GradientStabilizer'),
    'ValueClip': dict(type='ValueClip', clip_value=0.05),
    'ValueClip range': dict(type='ValueClip', min=-0.01),
    'chain': dict(
        type='ChainClip',
        clips=[
            dict(type='AGC', clip_factor=0.05),
            dict(type='ParamNormClip', max_norm=0.2),
            dict(type='NormClip', max_norm=0.3),
        ],
    ),
    'routes': dict(
        type='NormClip',
        max_norm=1.0,
        rules=[
            dict(match='weight$', type='AGC', clip_factor=0.02),
            dict(match='bias$', type='ParamNormClip', max_norm=0.1),
        ],
    ),
}
SHAPES = [
    (5,),
    (1,),
    (),
    (3, 4),
    (2, 1023),
    (3, 1024),
    (2, 1025),
    (4, 3, 3, 3),
    (7, 1),
    (1, 6),
    (0,),
]


@contextlib.contextmanager
def with_kernels(yes: bool = True) -> Iterator[None]:
    """Make the rules use the kernels, or torch, on any device."""
    with (
        mock.patch.object(kernels, '_device_types', {DEVICE.type} if yes else set()),
        mock.patch.object(kernels.host_tensors, '_library', lambda: None),
    ):
        yield


def random(shape: tuple[int, ...], dtype=torch.float32, seed: int = 0, scale=1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) * scale).to(DEVICE, dtype)


def made(tensors: list[Tensor], rows: list[int] | None = None) -> MultiTensor:
    """The kernels for some tensors, each cut into ``rows`` units."""
    rows, units, first = rows or [1] * len(tensors), [], 0
    for tensor, n in zip(tensors, rows, strict=True):
        units.append(Units(first, n, tensor.numel() // n))
        first += n
    many = MultiTensor(units, tensors)
    assert many.take(tensors)
    return many


def norms64(tensors: list[Tensor], rows: list[int], p: float = 2.0) -> Tensor:
    parts = [t.double().reshape(n, -1).norm(p, dim=1) for t, n in zip(tensors, rows, strict=True)]
    return torch.cat(parts)


# -- measuring ---------------------------------------------------------------------------------


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('columns', [1, 2, 31, 1023, 1024, 1025, 2500])
def test_norms_of_rows_equal_float64(columns, dtype):
    tensors = [random((3, columns), dtype, seed) for seed in range(3)]
    rows = [3, 1, 3]
    found = made(tensors, rows).norms()
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, norms64(tensors, rows), rtol=1e-12, atol=0)


@pytest.mark.parametrize('p', ORDERS)
def test_norms_of_mixed_dtypes_equal_float64(p):
    tensors = [random((k % 7 + 1, k + 1), DTYPES[k % 3], seed=k) for k in range(60)]
    rows = [len(t) if k % 2 else 1 for k, t in enumerate(tensors)]
    expected = norms64(tensors, rows, p)
    torch.testing.assert_close(made(tensors, rows).norms(p), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize('p', ORDERS)
@pytest.mark.parametrize('chunk', [8, 100, 1500])
def test_norm_of_a_unit_shared_by_many_programs_equals_float64(chunk, p):
    """The smallest chunk gives more programs than elements of a block. Twice: counters reset."""
    tensors = [random((2001,), seed=1), random((2, 700), seed=2), random((3,), seed=3)]
    rows = [1, 2, 1]
    with mock.patch.object(multi_tensor, 'CHUNK', chunk):
        many = made(tensors, rows)
    with mock.patch.object(multi_tensor_kernels, 'BLOCK', 64 if chunk < 64 else 1024):
        for _ in range(2):
            expected = norms64(tensors, rows, p)
            torch.testing.assert_close(many.norms(p), expected, rtol=1e-12, atol=0)
            tensors[0].mul_(3)
    assert not many._arrived.any()


def test_norm_is_not_written_before_all_programs_have_arrived():
    tensors = [random((500,))]
    with mock.patch.object(multi_tensor, 'CHUNK', 100):
        many = made(tensors)
    (work,) = many._work.values()
    norms = torch.full((1,), -1.0, dtype=torch.float64, device=DEVICE)
    rest = work.partials, many._arrived, norms
    multi_tensor_kernels.measure(torch.float32, work.items[:4], many._pointers, *rest)
    assert float(norms) == -1 and int(many._arrived) == 4


def test_norm_with_the_default_chunk_equals_float64():
    tensors = [random((2 * multi_tensor.CHUNK + 5,))]
    torch.testing.assert_close(made(tensors).norms(), norms64(tensors, [1]), rtol=1e-12, atol=0)


@pytest.mark.parametrize('p', [*ORDERS, 40.0, 1e4])
@pytest.mark.parametrize('size', [1e-38, 1e-20, 1e20, 3e38])
def test_norms_whose_powers_overflow_or_underflow_are_exact(size, p):
    """In float32, and for high orders in float64. The smaller numbers also count."""
    tensors = [random((4, 6)).sign() * size * torch.tensor([1, 0.5] * 3, device=DEVICE)]
    right = size * (3 + 3 * 0.5**p) ** (1 / p) if p < math.inf else size
    expected = torch.full((4,), right, dtype=torch.float64)
    torch.testing.assert_close(made(tensors, [4]).norms(p).cpu(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize('p', ORDERS)
def test_norms_of_zeros_inf_nan_and_empty_tensors(p):
    rows = torch.ones(5, 1100, device=DEVICE)
    rows[0] = 0
    rows[1, 7] = math.inf
    rows[2, 1099] = math.nan
    rows[2, 5] = math.inf
    rows[3, 3] = -math.inf
    nothing = torch.zeros(0, device=DEVICE)
    for chunk in (multi_tensor.CHUNK, 300):
        with mock.patch.object(multi_tensor, 'CHUNK', chunk):
            found = made([rows, nothing], [5, 1]).norms(p).cpu()
        usual = 1100 ** (1 / p) if p < math.inf else 1.0
        expected = [0, math.inf, math.nan, math.inf, usual, 0]
        expected = torch.tensor(expected, dtype=torch.float64)
        torch.testing.assert_close(found, expected, equal_nan=True, rtol=1e-12, atol=0)


@settings(max_examples=30, deadline=None)
@given(
    values=st.lists(st.floats(width=32), min_size=1, max_size=40),
    p=st.one_of(st.floats(0.3, 50.0), st.sampled_from(ORDERS)),
)
def test_norm_of_any_numbers_and_order_equals_the_definition(values, p):
    """The definition in Python floats."""
    sizes = [abs(value) for value in values]
    top = math.nan if any(map(math.isnan, sizes)) else max(sizes)
    if p < math.inf and 0 < top < math.inf:
        top *= math.fsum((size / top) ** p for size in sizes) ** (1 / p)
    tensor = torch.tensor(values, device=DEVICE)
    with mock.patch.object(multi_tensor, 'CHUNK', 7):
        found = float(made([tensor]).norms(p))
    assert found == pytest.approx(top, rel=1e-12, nan_ok=True)


# -- scaling -----------------------------------------------------------------------------------


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('columns', [1, 33, 1024, 2500])
def test_rows_are_scaled_by_their_coefficients(columns, dtype):
    tensors = [random((4, columns), dtype, seed) for seed in range(2)]
    coefs = torch.tensor([0.5, 1.0, 0.3, 0.0, 1.7], dtype=torch.float64, device=DEVICE)
    old = copy.deepcopy(tensors)
    made(tensors, [4, 1]).scale(coefs)
    expected = [old[0].double() * coefs[:4, None], old[1].double() * coefs[4]]
    for tensor, right in zip(tensors, expected, strict=True):
        torch.testing.assert_close(
            tensor.double(), right, rtol=ROUNDING[dtype], atol=torch.finfo(dtype).tiny
        )
    # A coefficient of 1: bit-identical.
    assert torch.equal(tensors[0][1], old[0][1])


def test_coefficient_below_float32_scales_without_underflow():
    tensors = [torch.full((3,), 2e38, device=DEVICE)]
    coef = torch.tensor([1e-48], dtype=torch.float64, device=DEVICE)
    made(tensors).scale(coef)
    torch.testing.assert_close(tensors[0].cpu(), torch.full((3,), 2e-10), rtol=1e-6, atol=0)


def test_scale_with_count_leaves_later_tensors_unchanged():
    tensors = [torch.ones(3, 4, device=DEVICE, dtype=DTYPES[k % 2]) for k in range(4)]
    many = made(tensors, [3, 1, 3, 1])
    many.scale(torch.full((8,), 0.5, dtype=torch.float64, device=DEVICE), 2)
    assert [float(t.sum()) for t in tensors] == [6, 6, 12, 12]


def protected(values: Tensor, size: int) -> Tensor:
    """A copy; a write to its first ``size`` bytes ends the process."""
    memory = mmap.mmap(-1, values.numel() * 4)
    memory.write(bytes(values.numpy()))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        tensor = torch.frombuffer(memory, dtype=torch.float32)
    libc = ctypes.CDLL(None, use_errno=True)
    address = ctypes.c_void_p(tensor.data_ptr())
    assert libc.mprotect(address, ctypes.c_size_t(size), mmap.PROT_READ) == 0
    return tensor


@pytest.mark.skipif(not INTERPRETED, reason='protects memory of the host')
def test_coefficient_of_one_writes_nothing():
    count = mmap.PAGESIZE // 4
    quiet = protected(torch.arange(count, dtype=torch.float32), mmap.PAGESIZE)
    other = torch.ones(4)
    many = made([quiet, other])
    many.scale(torch.tensor([1.0, 0.25], dtype=torch.float64))
    assert float(quiet[-1]) == count - 1 and other.tolist() == [0.25] * 4


# -- clamping ----------------------------------------------------------------------------------


#: float16 holds none of the fractions exactly; the last two ranges do not contain 0.
RANGES = [(-0.5, 0.5), (None, 0.3), (-0.1, None), (-0.2, 1.5), (0.3, 2), (None, -0.7)]
WORDS = {torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}


def bits(tensor: Tensor) -> Tensor:
    """The bits of a tensor, to compare signs of zero and NaN too."""
    return tensor.cpu().contiguous().view(WORDS[tensor.dtype])


def of_bits(words: list[int], dtype: torch.dtype) -> Tensor:
    kind = WORDS[dtype]
    size = torch.iinfo(kind).bits
    return torch.tensor([w - (w >> (size - 1) << size) for w in words], dtype=kind).view(dtype)


def legible(values: Tensor) -> Tensor:
    """Replace subnormal bfloat16 numbers by 0: the interpreter misreads them."""
    if INTERPRETED and values.dtype == torch.bfloat16:
        return torch.where(values.abs() < torch.finfo(values.dtype).tiny, 0.0, values)
    return values


def assert_clamped(
    tensors: list[Tensor],
    rows: list[int],
    low: float | None,
    high: float | None,
    many: MultiTensor | None = None,
) -> Tensor:
    """Assert that clamp equals torch.clamp on the CPU; return the counts."""
    old = [tensor.cpu() if DEVICE.type == 'cuda' else tensor.clone() for tensor in tensors]
    # A bound beyond the range of the dtype has no effect; torch.clamp rejects it.
    right = []
    for t in old:
        most = torch.finfo(t.dtype).max
        ends = [end if end is None or abs(end) <= most else None for end in (low, high)]
        right.append(t.clone() if ends == [None, None] else torch.clamp(t, *ends))
    many = many or made(tensors, rows)
    counts, norms = many.clamp(low, high)
    assert counts.dtype == norms.dtype == torch.float64
    for tensor, was, expected in zip(tensors, old, right, strict=True):
        # NaN keeps its bits; torch changes those of a bfloat16 NaN.
        assert torch.equal(bits(tensor), torch.where(was.isnan(), bits(was), bits(expected)))
    changed = [(a != b).double() for a, b in zip(old, right, strict=True)]
    flat = [c.reshape(n, -1).sum(dim=1) for c, n in zip(changed, rows, strict=True)]
    assert torch.equal(counts.cpu(), torch.cat(flat))
    # The same order of summation; a compiler may fuse operations differently.
    rtol = 0 if INTERPRETED else 1e-14
    torch.testing.assert_close(norms, many.norms(), rtol=rtol, atol=0, equal_nan=True)
    expected = norms64(right, rows)
    torch.testing.assert_close(norms.cpu(), expected, rtol=1e-12, atol=0, equal_nan=True)
    assert not many._arrived.any()
    return counts


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize(('low', 'high'), RANGES)
def test_clamp_equals_torch(low, high, dtype):
    shapes = [(0,), (), (1,), (5,), (3, 1023), (2, 1024), (1025,), (3, 0), (2500,)]
    tensors = [random(shape, dtype, seed) for seed, shape in enumerate(shapes)]
    image = random((4, 6, 5, 5), dtype, 50).contiguous(memory_format=torch.channels_last)
    volume = random((2, 3, 4, 2, 2), dtype, 51).contiguous(memory_format=torch.channels_last_3d)
    counts = assert_clamped(
        [*tensors, image, image.clone(), volume], [1] * len(shapes) + [4, 1, 1], low, high
    )
    assert counts[0] == 0 and counts[-1] > 0


def test_clamp_counts_and_measures_each_row():
    rows = torch.tensor([[1.0, 2, 3], [-1, -2, -3], [0.5, 0, -0.5]], device=DEVICE)
    counts, norms = made([rows], [3]).clamp(-1.5, 2.5)
    assert counts.tolist() == [1, 2, 0]
    assert rows.tolist() == [[1, 2, 2.5], [-1, -1.5, -1.5], [0.5, 0, -0.5]]
    right = torch.tensor([1 + 4 + 6.25, 1 + 2 * 2.25, 0.5], dtype=torch.float64).sqrt()
    torch.testing.assert_close(norms.cpu(), right, rtol=1e-15, atol=0)


def test_clamp_rounds_bounds_to_each_dtype():
    tensors = [random((k % 5 + 1, 7 * k + 1), DTYPES[k % 3], seed=k) for k in range(15)]
    with count_launches() as launches:
        made(tensors).clamp(-1.0, 1.0)
        assert launches == {'_clamp': 3}
    for shown in (0.1, 0.3):
        rows = [len(t) if k % 2 else 1 for k, t in enumerate(tensors)]
        assert_clamped([t * 2 for t in tensors], rows, -shown, shown)


@pytest.mark.parametrize('chunk', [40, 100, 1500])
def test_clamp_of_a_unit_shared_by_many_programs_equals_torch(chunk):
    """The smallest chunk gives more programs than elements of a block. Again: counters reset."""
    tensors = [random((1601,), seed=1), random((2, 300), seed=2), random((3,), seed=3)]
    rows = [1, 2, 1]
    tensors[1][1].clamp_(-0.1, 0.1)
    with mock.patch.object(multi_tensor, 'CHUNK', chunk):
        many = made(tensors, rows)
    with mock.patch.object(multi_tensor_kernels, 'BLOCK', 32 if chunk < 64 else 1024):
        for low, high in ((-1.0, 1.5), (None, 0.2), (-0.15, None)):
            counts = assert_clamped(tensors, rows, low, high, many)
            assert counts[0] > 100 and counts[2] == 0


def test_count_is_not_written_before_all_programs_have_arrived():
    tensors = [random((500,))]
    with mock.patch.object(multi_tensor, 'CHUNK', 100):
        many = made(tensors)
    (work,) = many._work.values()
    out = [torch.full((1,), -1.0, dtype=torch.float64, device=DEVICE) for _ in range(2)]
    scratch = work.partials, work.changed, many._arrived
    multi_tensor_kernels.clamp(
        torch.float32, work.items[:4], many._pointers, -0.1, 0.1, *scratch, *out
    )
    assert float(out[0]) == float(out[1]) == -1 and int(many._arrived) == 4
    assert (tensors[0][:400].abs() <= 0.1).all() and (tensors[0][400:].abs() > 0.1).any()


def test_clamp_with_the_default_chunk_equals_torch():
    assert_clamped([random((2 * multi_tensor.CHUNK + 5,))], [1], -0.7, 0.4)


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize(
    ('low', 'high'),
    [*RANGES, (-0.0, 0.0), (0.0, None), (None, -0.0), (-math.inf, math.inf), (-1e6, 1e6)],
)
def test_clamp_of_nan_inf_zeros_and_bounds_equals_torch(low, high, dtype):
    """Two kinds of NaN, infinities, the bounds and their neighbours, both zeros."""
    inf = torch.tensor(math.inf, dtype=dtype)
    special = [math.inf, -math.inf, math.nan, 0.0, -0.0, torch.finfo(dtype).max]
    values = [torch.tensor(value, dtype=dtype) for value in special]
    values.append(-of_bits([0x7FC00123 if dtype == torch.float32 else 0x7FFD], dtype)[0])
    for end in (low, high):
        if end is not None:
            held = torch.tensor(end, dtype=dtype)
            values += [held, -held, held.nextafter(inf), held.nextafter(-inf)]
    together = legible(torch.stack(values))
    finite = together[together.isfinite()]
    alone = together[:, None].expand(-1, 3).contiguous()
    tensors = [t.to(DEVICE) for t in (together, finite, alone)]
    assert_clamped(tensors, [1, 1, len(alone)], low, high)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
def test_clamp_of_subnormal_numbers_equals_torch(dtype):
    step = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    steps = torch.tensor([0.0, 1, -1, 2, -2, 5, 7, -7, 100], dtype=torch.float64)
    values = (steps * step).to(DEVICE, dtype)
    assert values.cpu().unique().numel() == len(steps)
    # torch rounds a bound halfway between two numbers to the even one.
    for low, high, count in ((-1, 2, 5), (-2.5, 2.5, 4), (None, 1, 4), (2, None, 5)):
        ends = [None if end is None else end * step for end in (low, high)]
        assert assert_clamped([values.clone()], [1], *ends).tolist() == [count]


@pytest.mark.parametrize(
    ('bound', 'held'),
    [
        (0.1, 0.0999755859375),
        (0.3, 0.300048828125),
        # Rounded through float32, as in torch; direct rounding would give 1 + 2**-10.
        (1 + 2.0**-11 + 2.0**-30, 1.0),
        (65519.0, 65504.0),
    ],
)
def test_bound_is_rounded_to_float16_as_by_torch(bound, held):
    inf = torch.tensor(math.inf, dtype=torch.float16)
    at = torch.tensor(held, dtype=torch.float16)
    values = torch.stack([at, at.nextafter(inf), at.nextafter(-inf), -at, -at.nextafter(inf)])
    tensor = values.to(DEVICE)
    counts, _ = made([tensor]).clamp(-bound, bound)
    assert tensor.tolist() == [held, held, float(values[2]), -held, -held]
    assert counts.tolist() == [2]


@pytest.mark.parametrize('size', [1e-38, 1e-20, 1e20, 3e38])
def test_clamped_norms_whose_squares_overflow_or_underflow_are_exact(size):
    tensors = [torch.full((4, 5), math.inf, device=DEVICE)]
    counts, norms = made(tensors, [4]).clamp(None, size)
    expected = torch.full((4,), math.sqrt(5) * size, dtype=torch.float64)
    torch.testing.assert_close(norms.cpu(), expected, rtol=1e-6, atol=0)
    assert counts.tolist() == [5] * 4


@settings(max_examples=60, deadline=None)
@given(data=st.data(), dtype=st.sampled_from(DTYPES))
def test_clamp_of_any_bits_into_any_range_equals_torch(data, dtype):
    limits = torch.finfo(dtype)
    most = (1 << limits.bits) - 1
    words = data.draw(st.lists(st.integers(0, most), min_size=1, max_size=40))
    values = of_bits(words, dtype)
    # Any number in the range of the dtype, or an element, to have elements at a bound.
    given_ones = [v for v in values.tolist() if math.isfinite(v)]
    end = st.floats(-limits.max, limits.max)
    end = end | st.sampled_from(given_ones) if given_ones else end
    low, high = sorted(data.draw(st.tuples(end, end)))
    values = legible(values)
    low, high = (end if legible(torch.tensor(end, dtype=dtype)) else 0.0 for end in (low, high))
    low, high = data.draw(st.sampled_from([(low, high), (None, high), (low, None)]))
    with (
        mock.patch.object(multi_tensor, 'CHUNK', 8),
        mock.patch.object(multi_tensor_kernels, 'BLOCK', 4),
    ):
        assert_clamped([values.to(DEVICE)], [1], low, high)


@pytest.mark.skipif(not INTERPRETED, reason='protects memory of the host')
def test_clamp_does_not_write_elements_inside_the_range():
    """In units with and without an element outside."""
    count = mmap.PAGESIZE // 4
    old = torch.cat([torch.arange(count) % 7 - 3.0, torch.tensor([9.0, math.nan] * (count // 2))])
    both = protected(old, mmap.PAGESIZE)
    quiet = protected(torch.full((count,), -3.0), mmap.PAGESIZE)
    counts, _ = made([quiet, both, both[:0]]).clamp(-3.0, 3.0)
    assert counts.tolist() == [0, count, 0]
    assert both[count::2].unique().tolist() == [3] and both[count + 1 :: 2].isnan().all()
    assert torch.equal(both[:count], old[:count])


def test_bounds_need_no_copy_no_read_and_no_specialized_kernel():
    """Bounds of any size are passed as int32, so Triton does not compile for their values."""

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            assert func.overloadpacket not in (
                torch.ops.aten._local_scalar_dense,
                torch.ops.aten._to_copy,
                torch.ops.aten.copy_,
            )
            return func(*args, **(kwargs or {}))

    many = made([random((5,), dtype) for dtype in DTYPES])
    ends = [0.0, 1e-45, 1e-8, 0.1, 1, 16.0, 7e4, 3.4e38, 1e39, math.inf]
    with mock.patch.object(multi_tensor_kernels, '_clamp', mock.MagicMock()) as kernel, Watch():
        for end in ends:
            many.clamp(-end, end)
        many.clamp(0.0, None)
        many.clamp(None, 0.0)
    calls = kernel.__getitem__.return_value.call_args_list
    assert len(calls) == 3 * (len(ends) + 2)
    for call in calls:
        for argument in call.args:
            assert isinstance(argument, Tensor) or -(2**31) <= argument < 2**31
        assert sum(isinstance(argument, int) for argument in call.args) == 2


def test_bounds_are_rounded_on_the_host_under_any_default_device():
    tensor = random((100,))
    many = made([tensor])
    with torch.device('meta'):
        counts, norms = many.clamp(-0.5, 0.5)
    assert counts.device.type == norms.device.type == DEVICE.type
    assert float(tensor.abs().max()) == 0.5


# -- supported tensors -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('layout', 'fits_whole', 'fits_rows'),
    [
        (lambda t: t, True, True),
        (lambda t: t.contiguous(memory_format=torch.channels_last), True, True),
        (lambda t: t.transpose(1, 3), True, True),
        (lambda t: t.transpose(0, 1), True, False),
        (lambda t: t.permute(3, 1, 0, 2), True, False),
        (lambda t: t.permute(3, 1, 0, 2)[:1], False, False),
        (lambda t: t.transpose(0, 1)[:3], False, False),
        (lambda t: t[:, :, ::2], False, False),
        (lambda t: t[:1].expand(4, -1, -1, -1), False, False),
        (lambda t: t[1:], True, True),
        (lambda t: t.transpose(1, 3)[2:3], True, True),
    ],
    ids=[
        'contiguous',
        'channels-last',
        'transposed within',
        'transposed',
        'permuted',
        'a part of permuted',
        'a part of transposed',
        'strided',
        'expanded',
        'a part',
        'one row',
    ],
)
def test_take_accepts_contiguous_layouts_only(layout, fits_whole, fits_rows):
    tensor = layout(random((4, 6, 4, 4)))
    for rows, fits in ((1, fits_whole), (len(tensor), fits_rows)):
        many = MultiTensor([Units(0, rows, tensor.numel() // rows)], [tensor])
        assert many.take([tensor]) == fits
        if not fits:
            continue
        right = tensor.double().reshape(rows, -1).norm(dim=1)
        torch.testing.assert_close(many.norms(), right, rtol=1e-12, atol=0)
        old = tensor.clone()
        coefs = torch.arange(1.0, rows + 1, dtype=torch.float64, device=DEVICE)
        many.scale(coefs)
        expected = old * coefs.float().view(-1, *[1] * (old.ndim - 1))
        torch.testing.assert_close(tensor, expected, rtol=1e-6, atol=0)


def test_take_rejects_other_dtypes_and_shared_memory():
    one = random((4,))
    assert not MultiTensor([Units(0, 1, 4)], [one.double()]).take([one.double()])
    units = [Units(0, 1, 4), Units(1, 1, 4)]
    assert not MultiTensor(units, [one, one]).take([one, one])
    empty = torch.zeros(0, device=DEVICE)
    units = [Units(0, 1, 0), Units(1, 1, 0)]
    assert MultiTensor(units, [empty, empty.clone()]).take([empty, empty.clone()])
    # Not the dtype that the tables were made for.
    assert not made([one]).take([one.half()])


def test_addresses_are_uploaded_only_when_they_change():
    tensors = [random((5,), seed=k) for k in range(3)]
    many = made(tensors)
    with mock.patch.object(multi_tensor, '_upload', wraps=multi_tensor._upload) as upload:
        for _ in range(3):
            assert many.take(list(tensors))
            tensors[1].mul_(2)
            torch.testing.assert_close(many.norms(), norms64(tensors, [1] * 3))
        assert upload.call_count == 0
        moved = [tensors[0], random((5,), seed=9), tensors[2]]
        assert many.take(moved) and upload.call_count == 1
        torch.testing.assert_close(many.norms(), norms64(moved, [1] * 3))


# -- through the engine ------------------------------------------------------------------------


class Net(nn.Module):
    """Every kind of unit; those of transposed convolutions are not contiguous."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, groups=1)
        self.norm = nn.GroupNorm(2, 4)
        self.up = nn.ConvTranspose2d(4, 6, 2, groups=2)
        self.up1 = nn.ConvTranspose2d(6, 5, 2, bias=False)
        self.line = nn.Linear(5, 3)
        self.wide = nn.Linear(1100, 2)
        self.embed = nn.Embedding(7, 3)
        self.gain = nn.Parameter(torch.tensor(2.0))


def gradients(model: nn.Module, step: int, scale: float = 1.0) -> list[Tensor]:
    """Gradients of which some are too small to be clipped."""
    params = list(model.parameters())
    sizes = [scale * 10.0 ** ((k + step) % 4 - 3) for k in range(len(params))]
    return [
        random(p.shape, p.dtype, seed=100 * step + k, scale=sizes[k]) for k, p in enumerate(params)
    ]


def place_of(model: nn.Module, param: Tensor) -> int:
    return next(i for i, p in enumerate(model.parameters()) if p is param)


def run_rule(
    config: dict[str, Any],
    model: nn.Module,
    steps: list[list[Tensor]],
    use_kernels: bool,
    as_device: bool = False,
) -> tuple[list[list[Tensor]], list[dict], dict]:
    """Gradients that the optimizer gets in each step, records, final state of the rules."""
    params = list(model.parameters())
    optimizer = Probe(params)
    out, records = [], []
    with contextlib.ExitStack() as stack:
        stack.enter_context(with_kernels(use_kernels))
        if as_device:
            stack.enter_context(on_device())
        handle = attach(optimizer, copy.deepcopy(config), model=model)
        for grads in steps:
            for param, grad in zip(params, grads, strict=True):
                param.grad = grad.clone(memory_format=torch.preserve_format)
            optimizer.step()
            out.append(optimizer.seen)
            records.append(handle.stats())
        state = handle.state_dict()
        handle.remove()
    return out, records, state


def assert_same_steps(config, model, steps, rtol, **kwargs) -> None:
    ours, our_records, our_state = run_rule(config, model, steps, True, **kwargs)
    theirs, their_records, their_state = run_rule(config, model, steps, False, **kwargs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=1e-30, equal_nan=True)
    for a, b in zip(our_records, their_records, strict=True):
        assert a == pytest.approx(b, rel=max(rtol, 1e-6), nan_ok=True)
    torch.testing.assert_close(
        numbers(our_state), numbers(their_state), rtol=1e-5, atol=1e-30, equal_nan=True
    )


def numbers(state: Any) -> list:
    """The tensors of a nested state, in order."""
    if isinstance(state, Tensor):
        return [state]
    if isinstance(state, dict):
        state = list(state.values())
    return [t for item in state for t in numbers(item)] if isinstance(state, list) else []


@pytest.mark.parametrize('name', RULES)
def test_rule_gives_the_same_with_and_without_kernels(name):
    torch.manual_seed(0)
    model = Net().to(DEVICE)
    steps = [gradients(model, step) for step in range(4)]
    assert_same_steps(RULES[name], model, steps, rtol=1e-6)


@pytest.mark.parametrize('name', ['AGC', 'AdaGC', 'BlockRMSClip', 'ValueClip'])
@pytest.mark.skipif(not INTERPRETED, reason='stands in for a device')
def test_rule_on_a_device_gives_the_same_with_and_without_kernels(name):
    torch.manual_seed(0)
    model = Net()
    bad = gradients(model, 1)
    bad[2][0] = math.nan
    steps = [gradients(model, 0), gradients(model, 2)]
    assert_same_steps(dict(**RULES[name], nonfinite='off'), model, steps, 1e-6, as_device=True)
    steps.insert(1, bad)
    assert_same_steps(dict(**RULES[name], nonfinite='off'), model, steps, 1e-6, as_device=True)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('name', ['AGC', 'ParamNormClip'])
def test_half_precision_gives_the_same_with_and_without_kernels(name, dtype):
    torch.manual_seed(0)
    model = Net().to(DEVICE, dtype)
    assert_same_steps(RULES[name], model, [gradients(model, 0)], rtol=2 * ROUNDING[dtype])


def test_mixed_dtypes_take_one_launch_each():
    torch.manual_seed(0)
    model = Net().to(DEVICE)
    model.line.half()
    model.wide.bfloat16()
    steps = [gradients(model, step) for step in range(2)]
    # bfloat16 has the largest rounding error.
    assert_same_steps(RULES['AGC'], model, steps, rtol=2 * ROUNDING[torch.bfloat16])
    with count_launches() as counts:
        run_rule(RULES['AGC'], model, steps, True)
    assert counts == {'_measure': 6, '_scale': 6}


def test_channels_last_uses_kernels_and_strided_falls_back():
    torch.manual_seed(0)
    model = Net().to(DEVICE)
    grads = gradients(model, 0)
    place = place_of(model, model.conv.weight)
    grads[place] = grads[place].contiguous(memory_format=torch.channels_last)
    for name in ('AGC', 'ParamNormClip'):
        with count_launches() as counts:
            assert_same_steps(RULES[name], model, [grads], rtol=1e-6)
        assert counts == {'_measure': 1, '_scale': 1}
    place = place_of(model, model.wide.weight)
    grads[place] = torch.stack([grads[place]] * 2, dim=-1).select(-1, 0)
    assert not grads[place].is_contiguous()
    for name in ('AGC', 'ParamNormClip'):
        optimizer = Probe(list(model.parameters()))
        with with_kernels(), count_launches() as counts, attach(optimizer, RULES[name]):
            for param, grad in zip(model.parameters(), grads, strict=True):
                param.grad = grad
            optimizer.step()
        assert counts == {}


def test_huge_gradients_are_scaled_to_the_limit():
    model = nn.Linear(50, 20, bias=False).to(DEVICE)
    grads = [random((20, 50)).sign() * 1e20]
    for config in (dict(type='AGC', clip_factor=0.01), dict(type='ParamNormClip', max_norm=1.0)):
        ((out,),), (record) = run_rule(config, model, [grads], True)[:2]
        if config['type'] == 'AGC':
            limits = 0.01 * model.weight.detach().double().norm(dim=1)
            found = out.double().norm(dim=1)
        else:
            limits, found = (
                torch.tensor(1.0, dtype=torch.float64, device=DEVICE),
                out.double().norm(),
            )
        torch.testing.assert_close(found, limits, rtol=1e-6, atol=0)
        assert torch.equal(out.sign(), grads[0].sign()) and record[0]['nonfinite'] == 0


def test_rows_below_their_limit_are_bit_identical():
    model = nn.Linear(1500, 8, bias=False).to(DEVICE)
    nn.init.ones_(model.weight)
    grads = [random((8, 1500)) * torch.tensor([1e-4, 1.0] * 4, device=DEVICE)[:, None]]
    ((out,),) = run_rule(dict(type='AGC', clip_factor=0.01), model, [grads], True)[0]
    assert torch.equal(out[::2], grads[0][::2])
    assert (out[1::2].norm(dim=1) < grads[0][1::2].norm(dim=1) / 50).all()


@pytest.mark.parametrize('bad', [-math.inf, math.nan])
@pytest.mark.parametrize('policy', ['skip', 'zero', 'off'])
def test_nonfinite_steps_give_the_same_with_and_without_kernels(bad, policy):
    torch.manual_seed(0)
    model = Net().to(DEVICE)
    steps = [gradients(model, step) for step in range(3)]
    steps[1][place_of(model, model.conv.weight)][1, 2, 0, 1] = bad
    for name in ('AGC', 'AdaGC', 'ValueClip'):
        assert_same_steps(dict(**RULES[name], nonfinite=policy), model, steps, rtol=1e-6)


def test_changing_set_of_gradients_gives_the_same_without_kernels():
    torch.manual_seed(0)
    model = Net().to(DEVICE)
    params = list(model.parameters())
    out = {}
    for use in (True, False):
        optimizer = Probe(params)
        with with_kernels(use), attach(optimizer, RULES['AGC'], model=model):
            for step in range(4):
                for k, (p, g) in enumerate(zip(params, gradients(model, step), strict=True)):
                    p.grad = None if (k + step) % 3 == 0 else g
                optimizer.step()
        out[use] = [t for t in optimizer.seen if t is not None]
    torch.testing.assert_close(out[True], out[False], rtol=1e-6, atol=0)


shape_lists = st.lists(
    st.one_of(
        st.tuples(st.integers(1, 5)),
        st.tuples(st.integers(1, 4), st.integers(1, 40)),
        st.tuples(st.integers(1, 2), st.integers(1000, 1100)),
        st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=15, deadline=None)
@given(
    shapes=shape_lists,
    seed=st.integers(0, 1000),
    exponent=st.integers(-12, 20),
    dtype=st.sampled_from(DTYPES),
    name=st.sampled_from(['AGC', 'ParamNormClip', 'BlockRMSClip', 'AdaGC']),
)
def test_any_shapes_and_sizes_give_the_same_without_kernels(shapes, seed, exponent, dtype, name):
    params = [nn.Parameter(random(shape, dtype, seed + k)) for k, shape in enumerate(shapes)]
    exponent = max(min(exponent, 3), -3) if dtype == torch.float16 else exponent
    grads = [random(shape, dtype, seed + k + 50, 10.0**exponent) for k, shape in enumerate(shapes)]
    out = {}
    for use in (True, False):
        optimizer = Probe(params)
        with with_kernels(use), attach(optimizer, RULES[name]) as handle:
            for param, grad in zip(params, grads, strict=True):
                param.grad = grad.clone()
            optimizer.step()
            out[use] = optimizer.seen, handle.stats()
    # torch also rounds norms and coefficients to float32.
    tiny, rtol = torch.finfo(dtype).tiny, 2 * ROUNDING[dtype] + 2 * ROUNDING[torch.float32]
    torch.testing.assert_close(out[True][0], out[False][0], rtol=rtol, atol=tiny)
    assert out[True][1] == pytest.approx(out[False][1], rel=rtol)


# -- launches and reads ------------------------------------------------------------------------


@contextlib.contextmanager
def count_launches() -> Iterator[dict[str, int]]:
    """Counts the launches of each Triton kernel by its name."""
    counts: dict[str, int] = {}
    cls = type(multi_tensor_kernels._measure)
    grid = cls.__getitem__

    def counted(kernel, where):
        run = grid(kernel, where)

        def launched(*args, **kwargs):
            counts[kernel.fn.__name__] = counts.get(kernel.fn.__name__, 0) + 1
            return run(*args, **kwargs)

        return launched

    with mock.patch.object(cls, '__getitem__', counted):
        yield counts


@pytest.mark.parametrize(
    'name', ['AGC', 'ParamNormClip', 'BlockRMSClip', 'AdaGC', 'GradientStabilizer']
)
def test_rule_takes_two_launches_per_step(name):
    """One to measure and one to scale, for any number of tensors."""
    model = nn.ModuleList(nn.Linear(k + 1, 3) for k in range(12)).to(DEVICE)
    steps = [gradients(model, step) for step in range(2)]
    with count_launches() as counts:
        run_rule(RULES[name], model, steps, True)
    assert counts == {'_measure': 2, '_scale': 2}


def test_value_clip_takes_two_launches_per_step():
    model = nn.ModuleList(nn.Linear(k + 1, 3) for k in range(12)).to(DEVICE)
    steps = [gradients(model, step) for step in range(2)]
    with count_launches() as counts:
        ours, *_ = run_rule(RULES['ValueClip'], model, steps, True)
    assert counts == {'_measure': 2, '_clamp': 2}
    for seen, grads in zip(ours, steps, strict=True):
        for a, b in zip(seen, grads, strict=True):
            assert torch.equal(a, b.clamp(-0.05, 0.05))


@pytest.mark.skipif(not INTERPRETED, reason='on a GPU torch itself watches: tests/gpu')
@pytest.mark.parametrize('name', ['AGC', 'ParamNormClip', 'BlockRMSClip', 'AdaGC', 'ValueClip'])
def test_code_around_the_kernels_does_not_read_the_device(name):
    """Without the launches: the interpreter reads all memory."""

    class NoReads(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            assert func is not torch.ops.aten._local_scalar_dense.default
            return func(*args, **(kwargs or {}))

    def measure(dtype, items, pointers, partials, arrived, norms, p):
        norms.fill_(2.0)

    model = nn.ModuleList(nn.Linear(k + 1, 3) for k in range(4))
    optimizer = Probe(list(model.parameters()))
    config = dict(**RULES[name], nonfinite='off')
    with (
        with_kernels(),
        on_device(),
        mock.patch.object(multi_tensor_kernels, 'measure', measure),
        mock.patch.object(multi_tensor_kernels, 'scale', lambda *_: None),
        mock.patch.object(
            multi_tensor_kernels, 'clamp', lambda *args: [out.fill_(1.0) for out in args[-2:]]
        ),
        attach(optimizer, config) as handle,
    ):
        for step in range(3):
            for param, grad in zip(model.parameters(), gradients(model, step), strict=True):
                param.grad = grad
            if step == 0:
                optimizer.step()
                continue
            with NoReads():
                optimizer.step()
        assert handle.stats()['grad_norm'] > 0
