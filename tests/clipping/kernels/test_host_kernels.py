"""Tests of the Numba kernels against torch, and against NumPy in float64."""

import contextlib
import math
import os
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gclip_mm import attach
from gclip_mm.clipping.kernels import Units, host_tensors, host_threads
from gclip_mm.clipping.step.observers import StepObserver
from tests.clipping.cases import CASES, equal, make_optimizer

pytest.importorskip('numba')
ROOT = Path(__file__).resolve().parents[3]
SIZES = [0, 1, 5, 511, 512, 513, 2048, 32768, 32769, 200_000]


def make(sizes=SIZES, seed=0, scale=1.0):
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(size, generator=rng) * scale for size in sizes]


def tensors_of(grads):
    units = [Units(k, 1, grad.numel()) for k, grad in enumerate(grads)]
    kernels = host_tensors.HostTensors(units, grads)
    assert kernels.take(grads)
    return kernels


def norms64(tensors):
    return np.array([np.linalg.norm(t.double().numpy().ravel()) for t in tensors])


def check(grads, low, high, write):
    """Compare a scan of the gradients, and a clamp after it, with torch."""
    before = [grad.clone() for grad in grads]
    clamped = [grad.clamp(low, high) for grad in grads]
    kernels = tensors_of(grads)
    scan = kernels.scan(low, high, write)
    np.testing.assert_allclose(scan.norms.numpy(), norms64(before), rtol=2e-6)
    np.testing.assert_allclose(scan.posts.numpy(), norms64(clamped), rtol=2e-6)
    assert scan.changed == sum(int((a != b).sum()) for a, b in zip(before, clamped, strict=True))
    assert equal(grads, clamped if write else before)
    kernels.write(scan)
    assert equal(grads, clamped)


@pytest.mark.parametrize('write', [False, True])
@pytest.mark.parametrize('bounds', [(-0.5, 0.5), (None, 1.0), (-0.3, None), (0.2, 0.4), (-9, 9)])
def test_scan_and_write_equal_torch(bounds, write):
    check(make(), *bounds, write)


@pytest.mark.parametrize('write', [False, True])
@pytest.mark.parametrize('size', [1e-42, 1e-30, 1e-22, 1e18, 1e25, 3e37])
def test_scan_is_exact_where_squares_overflow_or_underflow(size, write):
    grads = make(scale=size)
    grads[-1][7] = 1.0
    check(grads, -0.5 * size, 2 * size, write)


@pytest.mark.parametrize('write', [False, True])
def test_scan_finds_a_single_element_outside(write):
    for place in (0, 511, 512, 32767, 32768, 199_999):
        grads = [torch.zeros(200_000)]
        grads[0][place] = -3.0
        check(grads, -1.0, 1.0, write)


@contextlib.contextmanager
def threads(count):
    usual = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(usual)


def launched_by(launch):
    """Replace the function that runs a kernel on all threads by ``launch``."""
    host_threads._whoami()
    return mock.patch.object(host_threads, 'library', lambda: mock.Mock(GOMP_parallel=launch))


def test_results_do_not_depend_on_the_number_of_threads():
    grads = make(seed=3)
    kernels = tensors_of(grads)
    parallel, used = host_threads.library().GOMP_parallel, []

    def launch(kernel, job, count, flags):
        used.append(count)
        parallel(kernel, job, count, flags)

    scans = []
    with launched_by(launch):
        for count in (1, 2, 5):
            with threads(count):
                scans.append((kernels.scan(-0.5, 0.5, False), kernels.norms()))
    assert used == [2, 2, 5, 5]
    (first, norms), *others = scans
    for scan, again in others:
        assert equal([scan.norms, scan.posts, again], [first.norms, first.posts, norms])
        assert scan.changed == first.changed


@pytest.mark.parametrize('come', [1, 2])
def test_fewer_threads_than_requested_finish_all_work(come):
    """OpenMP may provide fewer threads than requested."""
    grads = make(seed=4)
    expected = [grad.double().norm() for grad in grads]
    parallel = host_threads.library().GOMP_parallel

    def launch(kernel, job, count, flags):
        parallel(kernel, job, come, flags)

    with launched_by(launch), threads(4):
        scan = tensors_of(grads).scan(-0.5, 0.5, True)
    torch.testing.assert_close(scan.norms, torch.stack(expected), rtol=1e-6, atol=0)
    assert all(grad.abs().max() <= 0.5 for grad in grads if grad.numel())


@pytest.mark.parametrize('count', [1, 2, 3, 7, 64])
def test_shares_hold_every_item_once(count):
    with threads(count):
        for sizes in ([], [1], [512], [40_000] * 5, [5, 100_000, 3], [1] * 100_000):
            sizes = np.array(sizes, dtype=np.int64)
            # Two items per tensor.
            tensors = np.repeat(np.arange(len(sizes)), 2)
            counts = np.stack([sizes // 2, sizes - sizes // 2], axis=1).reshape(-1)
            offsets = np.stack([0 * sizes, sizes // 2], axis=1).reshape(-1)
            crew = host_threads.Crew(tensors, offsets, counts, sizes)
            for chosen in (None, counts < 0, np.arange(len(counts)) % 3 == 0):
                share = crew.shares(chosen)
                wanted = np.arange(len(counts)) if chosen is None else np.flatnonzero(chosen)
                assert sorted(share.order) == wanted.tolist()
                cuts = share.cuts
                assert cuts[0] == 0 and cuts[-1] == len(wanted) and (np.diff(cuts) >= 0).all()
                few = count == 1 or counts[wanted].sum() < 1 << 15
                assert share.threads == (1 if few else count)
                assert len(cuts) == (2 if few else 16 * count + 1)


def owners(crew, count):
    """The thread that starts with each item."""
    with threads(count):
        share = crew.shares()
    found = np.empty(len(share.order), dtype=int)
    for thread in range(count):
        found[share.order[share.cuts[16 * thread] : share.cuts[16 * thread + 16]]] = thread
    return found


def test_threads_start_with_the_stretches_that_torch_gives_them():
    """One stretch of a large tensor each, in order; small tensors by position."""
    kernels = tensors_of([torch.randn(size) for size in (1000, 400_000, 1000, 70_000, 1000)])
    found = owners(kernels._crew, 4)
    each = [found[kernels._tensor == k].tolist() for k in range(5)]
    middles = (kernels._offsets / 4 + kernels._counts / 2)[kernels._tensor == 1]
    assert each[1] == (middles // 100_000).astype(int).tolist()
    # torch uses three threads for this size: 23334 elements each.
    assert each[3] == [0, 2, 2]
    assert [each[0], each[2], each[4]] == [[0], [3], [3]]


def test_small_rows_are_divided_evenly_among_threads():
    grads = [torch.randn(64, 64) for _ in range(80)]
    units = [Units(64 * k, 64, 64) for k in range(80)]
    kernels = host_tensors.HostTensors(units, grads)
    assert kernels.take(grads) and kernels.limit(1e-3, 0.1).shape == (64 * 80,)
    assert np.bincount(owners(kernels._pairs, 4)).tolist() == [640] * 4


def test_clipping_leaves_the_number_of_threads_unchanged():
    code = """
import torch
torch.ones(10**6).sum()
from gclip_mm import attach
p = torch.nn.Parameter(torch.zeros(300_000))
optimizer = torch.optim.SGD([p], lr=1.0)
attach(optimizer, dict(type='ValueClip', clip_value=0.5))
p.grad = torch.ones(300_000)
optimizer.step()
torch.ones(10**6).sum()
print(torch.get_num_threads())
"""
    for count in ('1', '2'):
        assert run(code, OMP_NUM_THREADS=count).stdout == count + '\n'


def test_concurrent_python_threads_clip_correctly():
    def work(seed):
        grads = make([300_000], seed)
        expected = grads[0].clamp(-0.5, 0.5)
        for _ in range(20):
            scan = tensors_of(grads).scan(-0.5, 0.5, True)
        return equal(grads[0], expected) and scan.changed == 0

    with ThreadPoolExecutor(3) as pool:
        assert all(pool.map(work, range(3)))


def test_channels_last_and_slices_are_clamped():
    grads = [
        torch.randn(64, 3, 7, 7).to(memory_format=torch.channels_last),
        torch.randn(400, 100)[100:200],
    ]
    check(grads, -0.5, 0.5, True)


class Other(torch.Tensor):
    pass


def test_take_rejects_unsupported_tensors():
    fine, other, empty = torch.randn(10, 4), torch.randn(40), torch.empty(0)
    units = [Units(0, 1, 40), Units(1, 1, 40), Units(2, 1, 0), Units(3, 1, 0)]
    kernels = host_tensors.HostTensors(units, [fine, other, empty, empty])
    memory = torch.randn(100)
    for first, second in [
        (fine, other.double()),
        (fine, torch.randn(80)[::2]),
        (fine, torch.randn(4, 12).t()[:10]),
        (fine, fine),
        (memory[:40].view(10, 4), memory[30:70]),
        (fine, torch._neg_view(other)),
        (fine, torch._efficientzerotensor((40,))),
        (fine, torch.empty(40, device='meta')),
        (fine, other.as_subclass(Other)),
    ]:
        assert not kernels.take([first, second, empty, empty])
    assert not kernels.fits([fine, other[1:], empty, empty])
    assert kernels.take([other, torch.nn.Parameter(fine), empty, empty])
    with pytest.raises(ValueError, match='order 3'):
        kernels.norms(3.0)


def test_take_accepts_transposed_wholes_and_rejects_torn_rows():
    tensor = torch.randn(4, 10).t()
    whole = host_tensors.HostTensors([Units(0, 1, 40)], [tensor])
    assert whole.take([tensor])
    torch.testing.assert_close(whole.norms(), tensor.double().norm().reshape(1))
    assert not host_tensors.HostTensors([Units(0, 10, 4)], [tensor]).take([tensor])


@pytest.mark.parametrize('size', [1.0, 1e-42, 1e-22, 1e25])
def test_units_are_measured_and_scaled(size):
    """Rows shorter and longer than a block and an item, numbered with gaps, some scaled."""
    shapes = [(5, 3), (2, 70_000), (0, 4), (3, 0), (7, 512), (1, 1)]
    grads = make([math.prod(shape) for shape in shapes], scale=size)
    grads = [grad.view(shape) for grad, shape in zip(grads, shapes, strict=True)]
    firsts = [10, 0, 20, 2, 30, 40]
    units = [Units(first, *grad.shape) for first, grad in zip(firsts, grads, strict=True)]
    kernels = host_tensors.HostTensors(units, grads, 50)
    assert kernels.take(grads)
    norms = kernels.norms()
    assert norms.dtype == torch.float64 and norms.shape == (50,)
    coefs = torch.ones(50, dtype=torch.float64)
    coefs[[0, 11, 33, 40]] = torch.tensor([0.5, 0.1, 1e-3, 0.0], dtype=torch.float64)
    before = [grad.clone() for grad in grads]
    kernels.scale(coefs, 5)
    for first, grad, old in zip(firsts, grads, before, strict=True):
        rows = slice(first, first + len(grad))
        expected = np.linalg.norm(old.double().numpy(), axis=1)
        np.testing.assert_allclose(norms[rows].numpy(), expected, rtol=2e-6)
        # The last tensor is not among the first five.
        used = coefs[rows] if first != 40 else torch.ones(1)
        assert equal(grad, (old.double() * used[:, None]).float())


def test_norms_of_nonfinite_tensors_are_nonfinite():
    grads = make([5000, 100, 40_000])
    grads[0][4000], grads[2][39_000] = math.inf, math.nan
    norms = tensors_of(grads).norms()
    assert norms[0] == math.inf and math.isfinite(norms[1]) and math.isnan(norms[2])


@pytest.mark.parametrize('bad', [math.nan, math.inf, -math.inf])
def test_scan_leaves_nonfinite_blocks_unchanged(bad):
    grads = make([5000, 100])
    grads[0][3000] = bad
    before = [grad.clone() for grad in grads]
    scan = tensors_of(grads).scan(-0.1, 0.1, True)
    assert not math.isfinite(scan.norms[0]) and math.isfinite(scan.norms[1])
    assert equal(grads[0][2560:3072], before[0][2560:3072])
    assert equal(grads[1], before[1].clamp(-0.1, 0.1))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=40),
    st.floats(-(2.0**100), 2.0**100, width=32),
    st.floats(0, 2.0**100, width=32),
    st.booleans(),
)
def test_scan_of_any_numbers_equals_torch(values, low, span, write):
    check([torch.tensor(values)], low, max(low, float(np.float32(low + span))), write)


EARLY = {'ValueClip': (-0.01, 0.01), 'ValueClip range': (-0.1, 0.3), 'ChainClip': (-0.1, 0.1)}


@pytest.mark.parametrize('watched', [False, True])
@pytest.mark.parametrize('fused', [False, True])
@pytest.mark.parametrize('case', EARLY)
def test_skipped_step_may_have_clamped_finite_gradients(case, fused, watched):
    """Clamping starts before the NaN is found; with an observer it does not."""
    low, high = EARLY[case]
    params = [torch.nn.Parameter(torch.ones(3, 2)), torch.nn.Parameter(torch.ones(4))]
    optimizer = make_optimizer(CASES[case], params, fused=fused)
    handle = attach(optimizer, CASES[case])
    if watched:
        handle.engine.observers.append(StepObserver())
    params[0].grad, params[1].grad = torch.randn(3, 2), torch.randn(4)
    params[0].grad[1, 1] = math.nan
    first, second = (p.grad.clone() for p in params)
    optimizer.step()
    assert handle.stats()['nonfinite'] == 1 and handle.stats()['clip_fraction'] == 0
    assert all((p == 1).all() for p in params)
    assert equal(params[0].grad, first)
    assert equal(params[1].grad, second if watched else second.clamp(low, high))


def test_value_clip_uses_scan():
    p = torch.nn.Parameter(torch.zeros(70_000))
    optimizer = torch.optim.SGD([p], lr=1.0)
    attach(optimizer, dict(type='ValueClip', clip_value=0.5))
    p.grad = torch.randn(70_000)
    expected = -p.grad.clamp(-0.5, 0.5)
    with mock.patch.object(host_tensors.HostTensors, 'scan', autospec=True, wraps=None) as scan:
        scan.side_effect = RuntimeError('asked for')
        with pytest.raises(RuntimeError, match='asked for'):
            optimizer.step()
    optimizer.step()
    assert equal(p.data, expected)


def run(code, **env):
    return subprocess.run(
        [sys.executable, '-c', code],
        cwd=ROOT,
        env={**os.environ, 'PYTHONPATH': str(ROOT), **env},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_no_kernels_if_turned_off_or_without_numba():
    code = 'from gclip_mm.clipping.kernels import host_tensors as t; print(t._library() is None)'
    assert run(code, GCLIP_NUMBA='0').stdout == 'True\n'
    assert run('import sys; sys.modules["numba"] = None; ' + code).stdout == 'True\n'
    assert run(code).stdout == 'False\n'


def test_broken_numba_warns_once(monkeypatch):
    host_tensors._library.cache_clear()
    monkeypatch.setitem(sys.modules, 'gclip_mm.clipping.kernels.host_kernels', None)
    monkeypatch.delattr('gclip_mm.clipping.kernels.host_kernels', raising=False)
    try:
        with pytest.warns(UserWarning, match='GCLIP_NUMBA=0'):
            assert host_tensors._library() is None
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            assert host_tensors._library() is None
    finally:
        host_tensors._library.cache_clear()


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='no fork here')
def test_forked_child_with_one_thread_clips():
    """Several threads do not survive a fork, in torch as well."""
    code = """
import os, torch
from gclip_mm import attach
p = torch.nn.Parameter(torch.zeros(100_000))
optimizer = torch.optim.SGD([p], lr=1.0)
attach(optimizer, dict(type='ValueClip', clip_value=0.5))
p.grad = torch.ones(100_000)
torch.set_num_threads(2)
optimizer.step()
child = os.fork()
if not child:
    torch.set_num_threads(1)
    optimizer.step()
    os._exit(0 if (p == -1).all() else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = run(code)
    assert done.stdout == '0\n', done.stderr


RULES = [
    dict(type='ValueClip', clip_value=0.01),
    dict(type='ParamNormClip', max_norm=0.01),
    dict(type='AGC', clip_factor=0.01),
]


@pytest.mark.parametrize('config', RULES[:2], ids=lambda config: config['type'])
def test_smaller_parameter_writes_its_gradient_only(config):
    """All of the gradient is written, and nothing past its end."""
    p = torch.nn.Parameter(torch.ones(200, 100))
    optimizer = torch.optim.SGD([p], lr=0.0)
    attach(optimizer, config)
    p.grad = torch.ones(200, 100)
    optimizer.step()
    p.grad = None
    p.data = p.data[:100].clone()
    memory = torch.full((40_000,), 7.0)
    p.grad = memory[:10_000].view(100, 100)
    optimizer.step()
    assert (memory[10_000:] == 7).all() and (memory[:10_000] < 0.1).all()


@pytest.mark.parametrize('config', RULES, ids=lambda config: config['type'])
def test_autograd_sees_gradients_changed_in_place(config):
    p = torch.nn.Parameter(torch.ones(30, 4))
    optimizer = torch.optim.SGD([p], lr=0.0)
    attach(optimizer, config)
    (5 * p).sum().backward()
    other = torch.ones(30, 4, requires_grad=True)
    product = (other * p.grad).sum()
    optimizer.step()
    with pytest.raises(RuntimeError, match='modified by an inplace operation'):
        product.backward()
