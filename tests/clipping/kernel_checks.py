"""What the Triton kernels have to do, wherever they run.

``test_kernels.py`` runs this file in a process of its own under Triton's interpreter, which has to
be chosen before Triton is imported; ``tests/gpu/test_kernels.py`` runs the same on a GPU. By hand::

    TRITON_INTERPRET=1 python -m pytest tests/clipping/kernel_checks.py
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

from gclip_mm import attach  # noqa: E402
from gclip_mm.clipping import kernels  # noqa: E402
from gclip_mm.clipping.kernels import MultiTensor, Units, launch, multi_tensor  # noqa: E402

from .cases import Probe, on_device  # noqa: E402

INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'
DEVICE = torch.device('cpu' if INTERPRETED else 'cuda')
needs_kernels = pytest.mark.skipif(
    not INTERPRETED and not torch.cuda.is_available(),
    reason='needs a GPU, or TRITON_INTERPRET=1 in the environment',
)
pytestmark = needs_kernels
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
#: A rounding to the type, and one more where a product was rounded before.
ROUNDING = {torch.float32: 2.0**-23, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}
RULES = {
    'AGC': dict(type='AGC', clip_factor=0.05),
    'ParamNormClip': dict(type='ParamNormClip', max_norm=0.5),
    'ParamNormClip carry': dict(type='ParamNormClip', max_norm=0.5, carry=True),
    'ParamNormClip inf': dict(type='ParamNormClip', max_norm=0.1, norm_type='inf'),
    'BlockRMSClip': dict(type='BlockRMSClip', threshold=0.2),
    'AdaGC': dict(type='AdaGC', warmup_steps=2, rel=1.01, beta=0.9),
    'GradientStabilizer': dict(type='GradientStabilizer'),
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
    """Have the rules take the kernels, or the ordinary path, whatever the device."""
    with mock.patch.object(kernels, '_device_types', {DEVICE.type} if yes else set()):
        yield


def random(shape: tuple[int, ...], dtype=torch.float32, seed: int = 0, scale=1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) * scale).to(DEVICE, dtype)


def made(tensors: list[Tensor], rows: list[int] | None = None) -> MultiTensor:
    """The kernels for some tensors, each cut into as many units as ``rows`` says."""
    rows, units, first = rows or [1] * len(tensors), [], 0
    for tensor, n in zip(tensors, rows, strict=True):
        units.append(Units(first, n, tensor.numel() // n))
        first += n
    many = MultiTensor(units, tensors)
    assert many.take(tensors)
    return many


def norms64(tensors: list[Tensor], rows: list[int]) -> Tensor:
    parts = [t.double().reshape(n, -1).norm(dim=1) for t, n in zip(tensors, rows, strict=True)]
    return torch.cat(parts)


# -- measuring ---------------------------------------------------------------------------------


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('columns', [1, 2, 31, 1023, 1024, 1025, 2500])
def test_norms_of_rows(columns, dtype):
    tensors = [random((3, columns), dtype, seed) for seed in range(3)]
    rows = [3, 1, 3]
    found = made(tensors, rows).norms()
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, norms64(tensors, rows), rtol=1e-12, atol=0)


def test_many_tensors_of_every_type_at_once():
    tensors = [random((k % 7 + 1, k + 1), DTYPES[k % 3], seed=k) for k in range(60)]
    rows = [len(t) if k % 2 else 1 for k, t in enumerate(tensors)]
    torch.testing.assert_close(
        made(tensors, rows).norms(), norms64(tensors, rows), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize('chunk', [8, 100, 1500])
def test_a_unit_shared_by_many_programs(chunk):
    """At the smallest, more programs than a block has elements; twice, with the same counters."""
    tensors = [random((2001,), seed=1), random((2, 700), seed=2), random((3,), seed=3)]
    rows = [1, 2, 1]
    with mock.patch.object(multi_tensor, 'CHUNK', chunk):
        many = made(tensors, rows)
    with mock.patch.object(launch, 'BLOCK', 64 if chunk < 64 else 1024):
        for _ in range(2):
            torch.testing.assert_close(many.norms(), norms64(tensors, rows), rtol=1e-12, atol=0)
            tensors[0].mul_(3)
    assert not many._arrived.any()


def test_nobody_sums_before_all_have_arrived():
    tensors = [random((500,))]
    with mock.patch.object(multi_tensor, 'CHUNK', 100):
        many = made(tensors)
    (work,) = many._work.values()
    norms = torch.full((1,), -1.0, dtype=torch.float64, device=DEVICE)
    rest = work.partials, many._arrived, norms
    launch.measure(torch.float32, work.items[:4], many._pointers, *rest)
    assert float(norms) == -1 and int(many._arrived) == 4


def test_the_real_chunk():
    tensors = [random((2 * multi_tensor.CHUNK + 5,))]
    torch.testing.assert_close(made(tensors).norms(), norms64(tensors, [1]), rtol=1e-12, atol=0)


@pytest.mark.parametrize('size', [1e-38, 1e-20, 1e20, 3e38])
def test_sizes_whose_squares_float32_does_not_hold(size):
    tensors = [random((4, 5)).sign() * size]
    expected = torch.full((4,), math.sqrt(5) * size, dtype=torch.float64)
    torch.testing.assert_close(made(tensors, [4]).norms().cpu(), expected, rtol=1e-6, atol=0)


def test_zeros_inf_nan_and_nothing():
    rows = torch.ones(5, 1100, device=DEVICE)
    rows[0] = 0
    rows[1, 7] = math.inf
    rows[2, 1099] = math.nan
    rows[3, 3] = -math.inf
    nothing = torch.zeros(0, device=DEVICE)
    found = made([rows, nothing], [5, 1]).norms().cpu()
    expected = torch.tensor([0, math.inf, math.nan, math.inf, 1100**0.5, 0], dtype=torch.float64)
    torch.testing.assert_close(found, expected, equal_nan=True, rtol=1e-14, atol=0)


# -- scaling -----------------------------------------------------------------------------------


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('columns', [1, 33, 1024, 2500])
def test_scaled_rows(columns, dtype):
    tensors = [random((4, columns), dtype, seed) for seed in range(2)]
    coefs = torch.tensor([0.5, 1.0, 0.3, 0.0, 1.7], dtype=torch.float64, device=DEVICE)
    old = copy.deepcopy(tensors)
    made(tensors, [4, 1]).scale(coefs)
    expected = [old[0].double() * coefs[:4, None], old[1].double() * coefs[4]]
    for tensor, right in zip(tensors, expected, strict=True):
        torch.testing.assert_close(
            tensor.double(), right, rtol=ROUNDING[dtype], atol=torch.finfo(dtype).tiny
        )
    # A coefficient of 1 changes no bit.
    assert torch.equal(tensors[0][1], old[0][1])


def test_a_coefficient_that_float32_does_not_hold():
    tensors = [torch.full((3,), 2e38, device=DEVICE)]
    coef = torch.tensor([1e-48], dtype=torch.float64, device=DEVICE)
    made(tensors).scale(coef)
    torch.testing.assert_close(tensors[0].cpu(), torch.full((3,), 2e-10), rtol=1e-6, atol=0)


def test_only_the_first_tensors_are_scaled():
    tensors = [torch.ones(3, 4, device=DEVICE, dtype=DTYPES[k % 2]) for k in range(4)]
    many = made(tensors, [3, 1, 3, 1])
    many.scale(torch.full((8,), 0.5, dtype=torch.float64, device=DEVICE), 2)
    assert [float(t.sum()) for t in tensors] == [6, 6, 12, 12]


@pytest.mark.skipif(not INTERPRETED, reason='protects memory of the host')
def test_what_needs_no_clipping_is_not_written():
    """It lies in memory that ends the process when it is written to."""
    size = mmap.PAGESIZE
    memory = mmap.mmap(-1, size)
    memory.write(bytes(torch.arange(size // 4, dtype=torch.float32).numpy()))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        protected = torch.frombuffer(memory, dtype=torch.float32)
    libc = ctypes.CDLL(None, use_errno=True)
    address = ctypes.c_void_p(protected.data_ptr())
    assert libc.mprotect(address, ctypes.c_size_t(size), mmap.PROT_READ) == 0
    other = torch.ones(4)
    many = made([protected, other])
    many.scale(torch.tensor([1.0, 0.25], dtype=torch.float64))
    assert float(protected[-1]) == size // 4 - 1 and other.tolist() == [0.25] * 4


# -- what is taken -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('layout', 'fits'),
    [
        (lambda t: t, True),
        (lambda t: t.contiguous(memory_format=torch.channels_last), True),
        (lambda t: t.transpose(0, 1), False),
        (lambda t: t[:, :, ::2], False),
        (lambda t: t[:1].expand(4, -1, -1, -1), False),
        (lambda t: t[1:], True),
    ],
    ids=['contiguous', 'channels-last', 'transposed', 'strided', 'expanded', 'a part'],
)
def test_layouts(layout, fits):
    tensor = layout(random((4, 6, 4, 4)))
    many = MultiTensor([Units(0, len(tensor), tensor[0].numel())], [tensor])
    assert many.take([tensor]) == fits
    if fits:
        right = tensor.double().flatten(1).norm(dim=1)
        torch.testing.assert_close(many.norms(), right, rtol=1e-12, atol=0)


def test_types_and_shared_memory():
    one = random((4,))
    assert not MultiTensor([Units(0, 1, 4)], [one.double()]).take([one.double()])
    units = [Units(0, 1, 4), Units(1, 1, 4)]
    assert not MultiTensor(units, [one, one]).take([one, one])
    empty = torch.zeros(0, device=DEVICE)
    units = [Units(0, 1, 0), Units(1, 1, 0)]
    assert MultiTensor(units, [empty, empty.clone()]).take([empty, empty.clone()])
    # Another type than the tables were made for.
    assert not made([one]).take([one.half()])


def test_the_table_of_addresses_is_made_anew_only_when_they_change():
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
    """Every kind of unit; the transposed convolutions' are no runs of memory."""

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
    """Some of them so small that nothing is to be clipped."""
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
    """What the optimizer gets in each step, the records, and the state of the rules in the end."""
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
def test_a_rule_does_the_same_with_kernels_as_without(name):
    torch.manual_seed(0)
    model = Net().to(DEVICE)
    steps = [gradients(model, step) for step in range(4)]
    assert_same_steps(RULES[name], model, steps, rtol=1e-6)


@pytest.mark.parametrize('name', ['AGC', 'AdaGC', 'BlockRMSClip'])
@pytest.mark.skipif(not INTERPRETED, reason='stands in for a device')
def test_as_on_a_device_whose_memory_the_host_cannot_see(name):
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
def test_half_precision(name, dtype):
    torch.manual_seed(0)
    model = Net().to(DEVICE, dtype)
    assert_same_steps(RULES[name], model, [gradients(model, 0)], rtol=2 * ROUNDING[dtype])


def test_types_mixed_in_one_model():
    torch.manual_seed(0)
    model = Net().to(DEVICE)
    model.line.half()
    model.wide.bfloat16()
    steps = [gradients(model, step) for step in range(2)]
    # bfloat16 is the coarsest.
    assert_same_steps(RULES['AGC'], model, steps, rtol=2 * ROUNDING[torch.bfloat16])
    with count_launches() as counts:
        run_rule(RULES['AGC'], model, steps, True)
    assert counts == {'_measure': 6, '_scale': 6}


def test_channels_last_and_strided_gradients():
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


def test_huge_gradients_are_clipped_and_not_zeroed():
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


def test_rows_that_need_no_clipping_keep_their_bits():
    model = nn.Linear(1500, 8, bias=False).to(DEVICE)
    nn.init.ones_(model.weight)
    grads = [random((8, 1500)) * torch.tensor([1e-4, 1.0] * 4, device=DEVICE)[:, None]]
    ((out,),) = run_rule(dict(type='AGC', clip_factor=0.01), model, [grads], True)[0]
    assert torch.equal(out[::2], grads[0][::2])
    assert (out[1::2].norm(dim=1) < grads[0][1::2].norm(dim=1) / 50).all()


@pytest.mark.parametrize('bad', [-math.inf, math.nan])
@pytest.mark.parametrize('policy', ['skip', 'zero', 'off'])
def test_steps_that_are_not_finite(bad, policy):
    torch.manual_seed(0)
    model = Net().to(DEVICE)
    steps = [gradients(model, step) for step in range(3)]
    steps[1][place_of(model, model.conv.weight)][1, 2, 0, 1] = bad
    for name in ('AGC', 'AdaGC'):
        assert_same_steps(dict(**RULES[name], nonfinite=policy), model, steps, rtol=1e-6)


def test_gradients_that_come_and_go():
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
def test_any_shapes_and_sizes(shapes, seed, exponent, dtype, name):
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
    tiny = torch.finfo(dtype).tiny
    torch.testing.assert_close(out[True][0], out[False][0], rtol=2 * ROUNDING[dtype], atol=tiny)
    assert out[True][1] == pytest.approx(out[False][1], rel=2 * ROUNDING[dtype])


# -- launches and reads ------------------------------------------------------------------------


@contextlib.contextmanager
def count_launches() -> Iterator[dict[str, int]]:
    """Counts every launch of a Triton kernel, by the kernel's name."""
    counts: dict[str, int] = {}
    cls = type(launch._measure)
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
def test_two_launches_a_step(name):
    """However many tensors: one to measure, one to scale."""
    model = nn.ModuleList(nn.Linear(k + 1, 3) for k in range(12)).to(DEVICE)
    steps = [gradients(model, step) for step in range(2)]
    with count_launches() as counts:
        run_rule(RULES[name], model, steps, True)
    assert counts == {'_measure': 2, '_scale': 2}


@pytest.mark.skipif(not INTERPRETED, reason='on a GPU torch itself watches: tests/gpu')
@pytest.mark.parametrize('name', ['AGC', 'ParamNormClip', 'BlockRMSClip', 'AdaGC'])
def test_nothing_around_the_kernels_reads_the_device(name):
    """The interpreter itself reads everything, so the launches are left out."""

    class NoReads(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            assert func is not torch.ops.aten._local_scalar_dense.default
            return func(*args, **(kwargs or {}))

    def measure(dtype, items, pointers, partials, arrived, norms):
        norms.fill_(2.0)

    model = nn.ModuleList(nn.Linear(k + 1, 3) for k in range(4))
    optimizer = Probe(list(model.parameters()))
    config = dict(**RULES[name], nonfinite='off')
    with (
        with_kernels(),
        on_device(),
        mock.patch.object(launch, 'measure', measure),
        mock.patch.object(launch, 'scale', lambda *_: None),
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
