"""Folding into a fused kernel, alone and under a GradScaler, and the path used on a GPU."""

import contextlib
import sys
from unittest import mock

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from gclip_mm import NonFiniteGradientError, attach
from gclip_mm.clipping import CLIPPERS
from gclip_mm.clipping.step.optimizer import OptimizerSide
from gclip_mm.clipping.step.record import pack_on_device
from tests.clipping.cases import CASES, equal, example, make_optimizer

SHAPES = [(4, 3), (4,), (2, 4), (2,)]
FUSED = {
    'SGD': lambda params: torch.optim.SGD(params, lr=0.1, fused=True),
    'SGD momentum': lambda params: torch.optim.SGD(
        params, lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True, fused=True
    ),
    'SGD maximize': lambda params: torch.optim.SGD(
        params, lr=0.1, momentum=0.9, dampening=0.1, maximize=True, fused=True
    ),
    'Adam': lambda params: torch.optim.Adam(
        params, lr=0.01, weight_decay=0.1, amsgrad=True, fused=True
    ),
    'AdamW': lambda params: torch.optim.AdamW(params, lr=0.01, fused=True),
    'Adagrad': lambda params: torch.optim.Adagrad(params, lr=0.01, fused=True),
}
GLOBAL = [name for name in CLIPPERS if CLIPPERS.get(name).is_global]


def make_params():
    rng = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=rng)) for shape in SHAPES]


def gradients(step, scale=1.0):
    rng = torch.Generator().manual_seed(100 + step)
    size = scale * 10.0 ** (step % 3 - 1)
    return [torch.randn(shape, generator=rng) * size for shape in SHAPES]


def bad(kind):
    grads = gradients(0)
    grads[2][1, 1] = float(kind)
    return grads


def set_grads(params, grads):
    for p, g in zip(params, grads, strict=True):
        p.grad = g.clone()


def run(params, optimizer, steps=6):
    for step in range(steps):
        set_grads(params, gradients(step))
        optimizer.step()


def assert_clean(optimizer):
    assert not hasattr(optimizer, 'grad_scale') and not hasattr(optimizer, 'found_inf')


class Ops(TorchDispatchMode):
    """Record the names of operations that write and take one of the given tensors."""

    def __init__(self, tensors):
        super().__init__()
        self.memory = {t.data_ptr() for t in tensors}
        self.writes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(a.alias_info is not None and a.alias_info.is_write for a in func._schema.arguments):
            flat = [t for a in args for t in (a if isinstance(a, list | tuple) else [a])]
            if any(isinstance(t, torch.Tensor) and t.data_ptr() in self.memory for t in flat):
                self.writes.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize('optimizer', FUSED)
@pytest.mark.parametrize('name', GLOBAL)
def test_folded_step_equals_unfolded_step(optimizer, name):
    folded, plain = make_params(), make_params()
    a, b = FUSED[optimizer](folded), FUSED[optimizer](plain)
    handle, other = attach(a, example(name)), attach(b, example(name))
    run(folded, a)
    with mock.patch.object(OptimizerSide, 'is_fused', False):
        run(plain, b)
    for p, q in zip(folded, plain, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)
    # The two runs differ by rounding only, and so do the norms of their gradients.
    assert handle.stats() == pytest.approx(other.stats(), rel=1e-6, nan_ok=True)
    assert_clean(a)


@pytest.mark.parametrize('optimizer', FUSED)
def test_folded_step_writes_gradients_only_in_the_kernel(optimizer):
    params = make_params()
    fused = FUSED[optimizer](params)
    attach(fused, dict(type='NormClip', max_norm=0.1))
    run(params, fused, 1)
    set_grads(params, gradients(2))
    with Ops([p.grad for p in params]) as ops:
        fused.step()
    kernels = [name for name in ops.writes if '_fused_' in name]
    assert kernels and ops.writes == kernels


def test_gradients_after_a_folded_step_are_clipped():
    params, reference = make_params(), make_params()
    fused = FUSED['SGD'](params)
    attach(fused, dict(type='NormClip', max_norm=0.1))
    set_grads(params, gradients(1))
    set_grads(reference, gradients(1))
    torch.nn.utils.clip_grad_norm_(reference, 0.1)
    fused.step()
    for p, q in zip(params, reference, strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-6, atol=0)


@pytest.mark.parametrize('size', [1e20, 1e30, 1e37])
@pytest.mark.parametrize('max_norm', [1.0, 1e-3])
@pytest.mark.parametrize('scale', [None, 2.0**16])
def test_huge_gradients_are_clipped_and_not_zeroed(size, max_norm, scale):
    """The kernel divides by a float32; a divisor out of its range must not become infinite."""
    if scale is not None:
        size /= scale
    params = [nn.Parameter(torch.zeros(3))]
    optimizer = torch.optim.SGD(params, lr=1.0, fused=True)
    attach(optimizer, dict(type='NormClip', max_norm=max_norm))
    params[0].grad = torch.tensor([3.0, 0.0, 4.0]) * size / 5
    if scale is None:
        optimizer.step()
    else:
        scaler = torch.amp.GradScaler('cpu', init_scale=scale)
        scaler.scale(torch.zeros((), requires_grad=True))
        params[0].grad *= scale
        scaler.step(optimizer)
        scaler.update()
        assert scaler.get_scale() == scale
    assert params[0].tolist() == pytest.approx([-0.6 * max_norm, 0, -0.8 * max_norm], rel=1e-5)


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('closure', [False, True])
@pytest.mark.parametrize('name', ['SGD momentum', 'AdamW'])
def test_compiled_step_equals_plain_step(name, closure):
    """A traced optimizer would silently ignore the attributes that a hook sets on it."""
    # Gradients below the threshold, above it, and not finite.
    batches = [gradients(0, 1e-4), gradients(1), bad('nan'), gradients(2, 1e-4), gradients(4)]

    def train(compiled):
        torch._dynamo.reset()
        params = make_params()
        optimizer = FUSED[name](params)
        handle = attach(optimizer, dict(max_norm=0.5))

        def plain():
            return optimizer.step((lambda: torch.zeros(())) if closure else None)

        step = torch.compile(plain, backend='eager') if compiled else plain
        for grads in batches:
            set_grads(params, grads)
            step()
        assert_clean(optimizer)
        return [p.data for p in params], handle.stats()

    expected, stats = train(False)
    got, stats_compiled = train(True)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
    assert stats_compiled == stats and stats['clip_coef'] < 0.1


# -- GradScaler --------------------------------------------------------------------------------


def scaled_run(params, optimizer, scaler, unscale, batches):
    """Run one scaled step per entry of ``batches``: its gradients, or None for an overflow."""
    for grads in batches:
        scale = scaler.get_scale()
        scaler.scale(torch.zeros((), requires_grad=True))
        if grads is None:
            set_grads(params, bad('inf'))
        else:
            set_grads(params, [g * scale for g in grads])
        if unscale:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()


@pytest.mark.parametrize('fused', [True, False])
@pytest.mark.parametrize('unscale', [True, False])
@pytest.mark.parametrize('case', CASES)
def test_run_under_a_scaler_equals_plain_run(case, fused, unscale):
    """Parameters, state and stats equal those of a plain run without the overflowing steps."""
    config = CASES[case]
    with_scaler, plain = make_params(), make_params()
    a = make_optimizer(config, with_scaler, fused=fused)
    b = make_optimizer(config, plain, fused=fused)
    handle, other = attach(a, config), attach(b, config)
    scaler = torch.amp.GradScaler('cpu', init_scale=1024.0, growth_interval=2)
    batches = [gradients(0), None, gradients(1), gradients(2), None, gradients(3), gradients(4)]
    scaled_run(with_scaler, a, scaler, unscale, [None, *batches])
    for step in range(5):
        set_grads(plain, gradients(step))
        b.step()
    # Three halvings and two doublings: the scaler saw the three overflows and no other.
    assert scaler.get_scale() == 1024.0 / 8 * 4
    for p, q in zip(with_scaler, plain, strict=True):
        torch.testing.assert_close(p, q, rtol=2e-6, atol=1e-7)
    assert handle.stats() == pytest.approx(other.stats(), rel=1e-5, nan_ok=True)
    mine, theirs = handle.state_dict()['routes'], other.state_dict()['routes']
    for one, two in zip(mine, theirs, strict=True):
        assert_state_close(one['state'], two['state'])
    assert_clean(a)


def assert_state_close(a, b):
    if isinstance(a, torch.Tensor):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_state_close(a[key], b[key])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_state_close(x, y)
    else:
        assert a == b


@pytest.mark.parametrize('fused', [True, False])
def test_scaler_overflow_under_raise_is_skipped_without_an_error(fused):
    params = make_params()
    optimizer = torch.optim.SGD(params, lr=0.1, momentum=0.9, fused=fused)
    attach(optimizer, dict(type='NormClip', max_norm=0.1, nonfinite='raise'))
    scaler = torch.amp.GradScaler('cpu', init_scale=1024.0)
    before = [p.clone() for p in params]
    scaled_run(params, optimizer, scaler, False, [None])
    assert scaler.get_scale() == 512.0 and equal([p.data for p in params], before)


def test_scale_other_than_a_power_of_two_gives_the_same_weights():
    params, plain = make_params(), make_params()
    for fused in (True, False):
        a = torch.optim.SGD(params, lr=0.1, fused=fused)
        b = torch.optim.SGD(plain, lr=0.1, fused=fused)
        with attach(a, dict(max_norm=0.1)), attach(b, dict(max_norm=0.1)):
            scaler = torch.amp.GradScaler('cpu', init_scale=1000.0)
            scaled_run(params, a, scaler, False, [gradients(i) for i in range(3)])
            run(plain, b, 3)
    for p, q in zip(params, plain, strict=True):
        torch.testing.assert_close(p, q, rtol=2e-6, atol=1e-7)


def test_disabled_scaler_changes_nothing():
    params, plain = make_params(), make_params()
    a, b = FUSED['AdamW'](params), FUSED['AdamW'](plain)
    attach(a, dict(max_norm=0.1))
    attach(b, dict(max_norm=0.1))
    scaler = torch.amp.GradScaler('cpu', enabled=False)
    for step in range(3):
        set_grads(params, gradients(step))
        scaler.step(a)
        scaler.update()
    run(plain, b, 3)
    assert equal([p.data for p in params], [q.data for q in plain])


# -- the path used on a GPU --------------------------------------------------------------------


@contextlib.contextmanager
def like_gpu():
    """Take the path used off the CPU: no host reads, and norms accumulate in float64."""
    with contextlib.ExitStack() as stack:
        for name, module in list(sys.modules.items()):
            if not name.startswith('gclip_mm.clipping'):
                continue
            if hasattr(module, 'host'):
                stack.enter_context(mock.patch.object(module, 'host', lambda tensor: None))
            if hasattr(module, 'make_record'):
                stack.enter_context(mock.patch.object(module, 'make_record', pack_on_device))
            if hasattr(module, 'accumulate_dtype'):
                stack.enter_context(
                    mock.patch.object(module, 'accumulate_dtype', lambda tensor: torch.float64)
                )
        yield


@pytest.mark.parametrize('kind', ['nan', 'inf'])
@pytest.mark.parametrize('bad_steps', [(0, 3), (2,)])
@pytest.mark.parametrize('sgd', [True, False], ids=['SGD', 'AdamW'])
@pytest.mark.parametrize('case', CASES)
def test_path_without_host_reads_gives_the_same_results(case, sgd, bad_steps, kind):
    """Fused SGD leaves its momentum uninitialised if ``found_inf`` stops its first step."""
    config = CASES[case]

    def train():
        params = make_params()
        optimizer = make_optimizer(config, params, sgd=sgd, fused=True)
        handle = attach(optimizer, config)
        records = []
        for step in range(6):
            set_grads(params, bad(kind) if step in bad_steps else gradients(step))
            optimizer.step()
            records.append(handle.stats())
        assert_clean(optimizer)
        routes = [route['state'] for route in handle.state_dict()['routes']]
        state = [{k: v for k, v in optimizer.state[p].items() if v is not None} for p in params]
        return [p.data for p in params], state, routes, records

    expected = train()
    with like_gpu():
        got = train()
    for a, b in zip(got[:3], expected[:3], strict=True):
        assert_state_close(a, b)
    for step, (a, b) in enumerate(zip(got[3], expected[3], strict=True)):
        if step in bad_steps:
            assert a['nonfinite'] == b['nonfinite'] == 1
        else:
            assert a == pytest.approx(b, rel=1e-5, nan_ok=True, abs=1e-9)


@pytest.mark.parametrize('policy', ['zero', 'off'])
@pytest.mark.parametrize('case', ['NormClip', 'AGC', 'ValueClip', 'AdaGC short'])
def test_path_without_host_reads_follows_the_policies_zero_and_off(case, policy):
    config = {**CASES[case], 'nonfinite': policy}

    def train():
        params = make_params()
        optimizer = make_optimizer(config, params, fused=True)
        attach(optimizer, config)
        for step in range(4):
            set_grads(params, bad('inf') if step == 2 else gradients(step))
            optimizer.step()
        return [p.data for p in params]

    expected = train()
    with like_gpu():
        got = train()
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7, equal_nan=True)


@pytest.mark.parametrize('unscale', [True, False])
@pytest.mark.parametrize('sgd', [True, False], ids=['SGD', 'AdamW'])
@pytest.mark.parametrize('case', CASES)
def test_path_without_host_reads_gives_the_same_results_under_a_scaler(case, sgd, unscale):
    config = CASES[case]

    def train():
        params = make_params()
        optimizer = make_optimizer(config, params, sgd=sgd, fused=True)
        handle = attach(optimizer, config)
        scaler = torch.amp.GradScaler('cpu', init_scale=1024.0)
        batches = [None, gradients(0), gradients(1), None, gradients(2)]
        scaled_run(params, optimizer, scaler, unscale, batches)
        assert scaler.get_scale() == 256.0
        assert_clean(optimizer)
        routes = [route['state'] for route in handle.state_dict()['routes']]
        return [p.data for p in params], routes, handle.stats()

    expected = train()
    with like_gpu():
        got = train()
    assert_state_close(got[0], expected[0])
    assert_state_close(got[1], expected[1])
    assert got[2] == pytest.approx(expected[2], rel=1e-5, nan_ok=True, abs=1e-9)


class Reads(TorchDispatchMode):
    """Record what would make the host wait for a GPU: operations and reads of tensor values.

    Args:
        methods: also record the methods by which Python reads values; ``numpy()`` is free for a
            tensor in host memory, but not for one on a GPU.
    """

    OPERATIONS = ('_local_scalar_dense', 'aten.item', 'nonzero', 'is_nonzero', 'aten.equal')
    METHODS = ('numpy', 'tolist', 'item', 'cpu', '__bool__', '__float__', '__int__', '__index__')

    def __init__(self, methods):
        super().__init__()
        self.seen = []
        self.patches = contextlib.ExitStack()
        self.methods = self.METHODS if methods else ()

    def __enter__(self):
        for name in self.methods:
            method = getattr(torch.Tensor, name)

            def noted(tensor, *args, _method=method, _name=name, **kwargs):
                self.seen.append(_name)
                return _method(tensor, *args, **kwargs)

            self.patches.enter_context(mock.patch.object(torch.Tensor, name, noted))
        return super().__enter__()

    def __exit__(self, *error):
        self.patches.close()
        return super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(part in str(func) for part in self.OPERATIONS):
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def test_reads_mode_detects_every_kind_of_host_read():
    x = torch.tensor([1.0, 2.0])
    for read in (lambda: x[0].item(), lambda: x.nonzero()):
        with Reads(methods=False) as reads:
            read()
        assert reads.seen
    # These reach the dispatcher on a GPU only.
    for read in (
        lambda: bool(x[0] > 0),
        lambda: float(x[1]),
        lambda: x.tolist(),
        lambda: x.numpy(),
        lambda: x.cpu(),
    ):
        with Reads(methods=True) as reads:
            read()
        assert reads.seen


@pytest.mark.parametrize('look', [True, False], ids=['cpu', 'like gpu'])
@pytest.mark.parametrize('optimizer', ['SGD momentum', 'AdamW'])
@pytest.mark.parametrize('name', list(CLIPPERS))
def test_fused_step_reads_no_value_on_the_host(name, optimizer, look):
    if name == 'GradientStabilizer' and optimizer.startswith('SGD'):
        pytest.skip('refused: the rule is for Adam-like optimizers')
    params = make_params()
    fused = FUSED[optimizer](params)
    attach(fused, example(name))
    with contextlib.nullcontext() if look else like_gpu():
        # The first step of SGD creates its momentum, and a rule may create its buffers.
        run(params, fused, 2)
        set_grads(params, gradients(2))
        plain = make_params()
        without = FUSED[optimizer](plain)
        run(plain, without, 2)
        set_grads(plain, gradients(2))
        with Reads(methods=not look) as baseline:
            without.step()
        with Reads(methods=not look) as reads:
            fused.step()
    assert reads.seen == baseline.seen == []


def test_max_consecutive_skips_raises_without_host_reads_in_each_step():
    """The flags accumulate on the device; the host reads them together at intervals."""
    params = make_params()
    optimizer = FUSED['AdamW'](params)
    attach(optimizer, dict(max_norm=1.0, max_consecutive_skips=5))
    with like_gpu():
        run(params, optimizer, 3)
        before = [p.detach().clone() for p in params]
        with pytest.raises(NonFiniteGradientError, match='max_consecutive_skips=5'):
            for _ in range(100):
                set_grads(params, bad('nan'))
                optimizer.step()
    assert equal([p.data for p in params], before)
