"""Tests of the kernels that decide, on any device; see ``kernel_checks.py``.

The reference is the same rule by torch's operators, as on a device. By hand::

    TRITON_INTERPRET=1 python -m pytest tests/clipping/kernels/decision_checks.py
"""

from __future__ import annotations

import contextlib
import math
import struct
from collections import Counter
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

pytest.importorskip('triton', reason='the kernels need Triton')

from gclip_mm import NonFiniteGradientError, attach
from gclip_mm.clipping.kernels import (
    decision,
    decision_kernels,
    multi_tensor_kernels,
    orders,
)
from gclip_mm.clipping.rules.norm_clip import NormClip
from gclip_mm.clipping.step.observers import StepObserver

from ..step.test_fold import Reads, like_gpu
from .kernel_checks import (
    DEVICE,
    INTERPRETED,
    ORDERS,
    needs_kernels,
    numbers,
    with_kernels,
)

# The interpreter computes with NumPy, which warns where a GPU does not.
pytestmark = [needs_kernels, pytest.mark.filterwarnings('ignore::RuntimeWarning')]
RULES: dict[str, dict[str, Any]] = {
    'NormClip': dict(type='NormClip', max_norm=0.7),
    'NormClip min': dict(type='NormClip', max_norm=3.0, min_norm=0.5),
    'NormClip inf': dict(type='NormClip', max_norm=0.5, norm_type='inf'),
    'NormClip 1': dict(type='NormClip', max_norm=2.0, norm_type=1),
    'NormClip 3': dict(type='NormClip', max_norm=0.5, norm_type=3),
    'ZClip': dict(type='ZClip', warmup_steps=3, z_threshold=0.5),
    'ZClip mean': dict(type='ZClip', warmup_steps=3, z_threshold=0.5, mode='mean', max_norm=None),
    'ZClip percentile': dict(
        type='ZClip', warmup_steps=3, z_threshold=0.5, mode='percentile', max_norm=9.0
    ),
    'AutoClip': dict(type='AutoClip', percentile=35, window=5),
}
#: Sizes of one element: non-finite ones, and ones whose square float32 cannot hold.
EDGES = [0.0, 0.3, 1.0, 40.0, math.inf, math.nan, -math.inf, 1e30, 1e-30, 1e-38, 3e38]


@pytest.fixture(autouse=True, scope='module')
def small_blocks():
    """Small blocks: the interpreter is slow on large, mostly empty ones."""
    if not INTERPRETED:
        yield
        return
    with (
        mock.patch.object(decision_kernels, 'BLOCK', 32),
        mock.patch.object(multi_tensor_kernels, 'BLOCK', 32),
    ):
        yield


def device_path() -> contextlib.AbstractContextManager:
    """Treat host memory as that of a device, which the host does not read."""
    return like_gpu() if INTERPRETED else contextlib.nullcontext()


class Fused(Optimizer):
    """Keeps what a fused optimizer gets, in place of stepping."""

    _step_supports_amp_scaling = True

    def __init__(self, params: list[Tensor]) -> None:
        super().__init__(params, dict(lr=0.0, fused=True))

    def step(self, closure=None) -> None:
        self.divisor = getattr(self, 'grad_scale', None)
        self.skips = getattr(self, 'found_inf', None)


class Watch(StepObserver):
    """Keeps all numbers that an observer gets."""

    def __init__(self) -> None:
        self.seen: list[Tensor | float] = []

    def before_clip(self, views, measures, norm, scale) -> None:
        (measure,) = measures
        assert norm.shape == () and measure.parts.shape == (len(views[0].view.grads),)
        self.seen += [norm, measure.norm, measure.parts.clone(), views[0].view.grads[0].clone()]
        self.seen += [] if scale is None else [scale]

    def after_clip(self, views, outcomes) -> None:
        (outcome,) = outcomes
        assert outcome.coef.shape == outcome.post.shape == ()
        self.seen += [*outcome]

    def on_record(self, record) -> None:
        self.seen.append(record)


class Step(NamedTuple):
    """The input of a step: gradients, and what a GradScaler sets on the optimizer."""

    grads: list[Tensor]
    scale: float | None = None
    scaler_inf: float | None = None


def run(config: dict[str, Any], steps: list[Step], use_kernels: bool) -> tuple[list, list]:
    """What optimizer and observers get in each step, as tensors, and the state of the rule."""
    params = [nn.Parameter(torch.ones_like(grad)) for grad in steps[0].grads]
    optimizer = Fused(params)
    watch, out = Watch(), []
    with with_kernels(use_kernels), device_path(), attach(optimizer, config) as handle:
        handle.engine.observers.append(watch)
        for step in steps:
            for param, grad in zip(params, step.grads, strict=True):
                param.grad = grad.clone()
            for name, value in (('grad_scale', step.scale), ('found_inf', step.scaler_inf)):
                set_to = None if value is None else torch.tensor(value, device=DEVICE)
                setattr(optimizer, name, set_to)
            given = optimizer.grad_scale, optimizer.found_inf
            optimizer.step()
            # The attributes that the scaler has set are restored.
            assert (optimizer.grad_scale, optimizer.found_inf) == given
            for value, number in zip(given, step[1:], strict=True):
                assert value is None or float(value) == number
            out.append([optimizer.divisor, optimizer.skips, *watch.seen])
            watch.seen = []
        state = numbers(handle.state_dict())
    return out, state


def assert_same(config: dict[str, Any], steps: list[Step]) -> list[list]:
    """Assert equal results with and without the kernel; return those with it."""
    with mock.patch.object(decision, '_launch', wraps=decision._launch) as launched:
        ours, our_state = run(config, steps, True)
        assert launched.call_count == len(steps)
        theirs, their_state = run(config, steps, False)
        assert launched.call_count == len(steps)
    for a, b in zip(ours, theirs, strict=True):
        compare(a, b)
    compare(our_state, their_state)
    return ours


def compare(ours: list, theirs: list) -> None:
    for a, b in zip(ours, theirs, strict=True):
        if a is None or b is None:
            assert a is b
            continue
        # Without the kernel, constants of a rule are Python numbers.
        a, b = (torch.as_tensor(x, dtype=torch.float64).cpu() for x in (a, b))
        torch.testing.assert_close(a, b, rtol=1e-6, atol=0, equal_nan=True)


def filled(value: float, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Gradients of ones, with one element of the given size."""
    shapes = [(3, 4), (5,), (1,)]
    grads = [torch.full(s, math.copysign(min(abs(value), 1e30), value)) for s in shapes]
    if not math.isfinite(value):
        grads = [torch.ones(s) for s in shapes]
    grads[1][2] = value
    return [grad.to(DEVICE, dtype) for grad in grads]


@pytest.mark.parametrize(
    ('policy', 'scale', 'scaler_inf'),
    [
        ('skip', None, None),
        ('skip', 1000.0, 0.0),
        ('skip', 2.0**16, 1.0),
        ('off', None, None),
        ('off', 1000.0, 1.0),
    ],
)
@pytest.mark.parametrize('rule', RULES)
def test_kernel_decides_as_torch_at_every_edge(rule, policy, scale, scaler_inf):
    """Edge cases between steps that update the state."""
    steps = []
    for k, value in enumerate(EDGES):
        if k % 2 == 0:
            usual = filled(0.1 * (k % 3 + 1) * (scale or 1))
            steps += [Step(usual, scale, 0.0 if scale else None)]
        steps += [Step(filled(value), scale, scaler_inf)]
    out = assert_same({**RULES[rule], 'nonfinite': policy}, steps)
    for step, (divisor, skips, *_, record) in zip(steps, out, strict=True):
        assert divisor.dtype == torch.float32 and record.dtype == torch.float64
        assert divisor.shape == () and record.shape == (6,)
        finite = all(bool(g.isfinite().all()) for g in step.grads) and not step.scaler_inf
        assert float(record[5]) == (not finite)
        if policy == 'skip':
            assert skips.dtype == torch.float32 and float(skips) == (not finite)


def norm_clip64(grads, max_norm, min_norm, scale):
    """The documented formula in Python floats."""
    flat = torch.cat([g.reshape(-1) for g in grads]).double().cpu()
    norm = math.sqrt(math.fsum(float(x) ** 2 for x in flat)) / (scale or 1.0)
    coef = min(1.0, max_norm / (norm + 1e-6))
    if min_norm is not None and 0 < norm < min_norm:
        coef = min_norm / norm
    return norm, coef


@pytest.mark.parametrize('scale', [None, 1024.0])
@pytest.mark.parametrize(
    ('size', 'max_norm', 'min_norm'),
    [
        (0.0, 1.0, None),
        (0.0, 1.0, 0.5),
        (1e30, 1.0, None),
        (1e-30, 1.0, None),
        (1e-30, 1.0, 0.5),
        (0.01, 1.0, None),
        (0.01, 1.0, 0.5),
        (7.0, 0.1, None),
        (7.0, 0.0, None),
        (7.0, math.inf, None),
    ],
)
def test_norm_clip_kernel_computes_the_documented_formula(size, max_norm, min_norm, scale):
    grads = [torch.full(shape, size, device=DEVICE) for shape in [(4, 5), (3,)]]
    config = dict(type='NormClip', max_norm=max_norm, min_norm=min_norm)
    (divisor, skips, *_, record) = run(config, [Step(grads, scale)], True)[0][0]
    norm, coef = norm_clip64(grads, max_norm, min_norm, scale)
    expected = [norm, norm * coef, coef, max_norm, float(coef < 1), 0]
    assert record.tolist() == pytest.approx(expected, rel=1e-12)
    assert float(skips) == 0
    right = math.inf if coef == 0 else (scale or 1.0) / coef
    assert float(divisor) == (math.inf if right > 3.5e38 else pytest.approx(right, rel=1e-6))


def test_threshold_is_passed_in_float64():
    """Triton would pass a Python float as float32."""
    config = dict(type='NormClip', max_norm=0.1)
    record = run(config, [Step(filled(1.0))], True)[0][0][-1]
    assert float(record[3]) == 0.1


@pytest.mark.parametrize('value', [0.0, 1e-300, 0.1, 1.0, 35.0, 1e300, math.inf, 5e-324, 3e-314])
def test_bits_of_keeps_every_float64(value):
    assert struct.unpack('d', struct.pack('q', orders.bits_of(value)))[0] == value
    record = run(dict(type='NormClip', max_norm=value), [Step(filled(1.0))], True)[0][0][-1]
    assert float(record[3]) == value


def test_divisor_beyond_float32_is_inf():
    """As without the kernel: the gradient becomes 0."""
    config = dict(type='NormClip', max_norm=1e-3)
    ((divisor, skips, *_, record),) = assert_same(config, [Step(filled(3e38))])
    assert math.isinf(float(divisor)) and float(skips) == 0
    assert float(record[1]) == pytest.approx(1e-3)


@pytest.mark.parametrize('count', [1, 2, 1023, 1024, 1025, 2600])
def test_norm_of_any_number_of_tensors_equals_torch(count, monkeypatch):
    monkeypatch.setattr(decision_kernels, 'BLOCK', 1024)
    norms = (torch.arange(count, dtype=torch.float64) % 7 + 0.25).to(DEVICE)
    for p in ORDERS:
        fold, record = torch.empty(2, device=DEVICE), norms.new_empty(6)
        call = NormClip(1.0).decision_kernel(DEVICE)
        decision._launch(call, norms, p, None, None, fold, record)
        assert float(record[0]) == pytest.approx(float(norms.norm(p)), rel=1e-12)


def test_percentile_of_a_window_longer_than_a_block_equals_numpy(monkeypatch):
    monkeypatch.setattr(decision_kernels, 'BLOCK', 1024)
    config = dict(type='AutoClip', percentile=90, window=1500)
    params, k = [nn.Parameter(torch.ones(2, device=DEVICE))], 1100
    history = torch.full((1500,), math.inf, dtype=torch.float64)
    history[:k] = torch.rand(k, dtype=torch.float64)
    optimizer = Fused(params)
    with with_kernels(), device_path(), attach(optimizer, config) as handle:
        state = handle.state_dict()
        state['routes'][0]['state'] = dict(history=history, count=torch.tensor(k))
        handle.load_state_dict(state)
        params[0].grad = torch.tensor([0.6, 0.8], device=DEVICE) * 0.875
        optimizer.step()
        threshold = handle.stats()['clip_threshold']
    seen = [*history[:k].tolist(), 0.875]
    assert threshold == pytest.approx(np.percentile(seen, 90), rel=1e-7)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize('rule', ['NormClip', 'AutoClip'])
def test_kernel_decides_as_torch_for_other_dtypes(rule, dtype):
    """torch measures float64 gradients."""
    assert_same(RULES[rule], [Step(filled(v, dtype)) for v in (0.5, 3.0, math.nan, 1.5)])


sizes = st.one_of(
    st.floats(1e-35, 1e35),
    st.floats(0.01, 10.0),
    st.sampled_from([0.0, 1.0, math.inf, math.nan]),
)


@settings(max_examples=20, deadline=None)
@given(
    rule=st.sampled_from(list(RULES)),
    values=st.lists(sizes, min_size=1, max_size=8),
    scale=st.sampled_from([None, 0.5, 1000.0, 2.0**16]),
    infs=st.integers(0, 2**12 - 1),
)
def test_kernel_decides_as_torch_in_any_run(rule, values, scale, infs):
    steps = []
    for k, value in enumerate(values):
        found = None if scale is None else float(infs >> k & 1)
        steps.append(Step(filled(value), scale, found))
    assert_same(RULES[rule], steps)


@settings(max_examples=10, deadline=None)
@given(
    norms=st.lists(st.floats(0, 1e6, width=32), min_size=1, max_size=9),
    window=st.integers(1, 6),
    percentile=st.one_of(st.floats(0, 100), st.sampled_from([0, 50, 100])),
)
def test_autoclip_percentile_equals_numpy(norms, window, percentile):
    """Ties, a full ring buffer, and both ends of the range."""
    config = dict(type='AutoClip', percentile=percentile, window=window)
    steps = [Step([torch.tensor([norm], device=DEVICE)]) for norm in norms]
    found = [float(row[-1][3]) for row in run(config, steps, True)[0]]
    for k, threshold in enumerate(found):
        right = np.percentile(np.array(norms[: k + 1][-window:], dtype=float), percentile)
        assert threshold == pytest.approx(right, rel=1e-9, abs=1e-12)


# -- when the kernel is used -------------------------------------------------------------------


def test_subclass_with_its_own_decide_uses_no_kernel():
    class Half(NormClip):
        def decide(self, norm, ok):
            return torch.full_like(norm, 0.5), 1.0

    param = nn.Parameter(torch.ones(3, device=DEVICE))
    optimizer = Fused([param])
    with with_kernels(), device_path(), attach(optimizer, dict(max_norm=1.0)) as handle:
        handle.engine.config.outer.__class__ = Half
        param.grad = torch.ones(3, device=DEVICE)
        optimizer.step()
    assert float(optimizer.divisor) == 2


def test_kernel_that_cannot_be_built_warns_once_and_falls_back():
    steps = [Step(filled(v)) for v in (0.5, 3.0, math.nan, 2.0)]
    broken = mock.Mock(side_effect=RuntimeError('no compiler'))
    for rule in ('NormClip', 'ZClip', 'AutoClip'):
        with (
            mock.patch.object(decision, '_launch', broken),
            mock.patch.object(decision, '_broken', set()),
            pytest.warns(UserWarning, match='no compiler') as seen,
        ):
            ours = run(RULES[rule], steps, True)
        assert len(seen) == 1
        theirs = run(RULES[rule], steps, False)
        for a, b in zip(ours[0], theirs[0], strict=True):
            compare(a, b)
        compare(ours[1], theirs[1])
    assert broken.call_count == 3


@pytest.mark.parametrize('policy', ['zero', 'raise'])
def test_policy_that_reads_the_norm_uses_no_kernel(policy):
    with mock.patch.object(decision, '_launch') as launched:
        run({**RULES['NormClip'], 'nonfinite': policy}, [Step(filled(0.5))], True)
    assert not launched.called


def test_run_that_only_skips_raises_at_the_limit():
    steps = [Step(filled(math.nan))] * 50
    config = dict(**RULES['NormClip'], max_consecutive_skips=5)
    with pytest.raises(NonFiniteGradientError, match='max_consecutive_skips=5'):
        run(config, steps, True)


# -- launches and reads ------------------------------------------------------------------------

#: Operators that launch nothing: allocations and views.
LAUNCHES_NOTHING = ('empty', 'view', 'reshape', 'unbind', 'select', 'slice', 'split', 'unsqueeze')
LAUNCHES_NOTHING += ('alias', 'detach', 'expand', '_record_function', 'lift_fresh', 'as_strided')
#: Most tensors in a launch of torch's multi-tensor kernels, by the number of tensor lists.
TENSORS_A_LAUNCH = {1: 110, 2: 64, 3: 48, 4: 36, 5: 30}


class Launches(TorchDispatchMode):
    """Counts launches on a GPU: those of Triton, and those of torch according to its source.

    A ``_foreach`` function launches once for 110 small tensors or 64 pairs; a norm also launches
    two fills and a sum. ``stack`` launches once for 128 tensors. Any other operator counts as one
    launch. The optimizer's own kernel, views and allocations count as none.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__.partition('.')[0]
        lists = [a for a in args if isinstance(a, list | tuple) and a and isinstance(a[0], Tensor)]
        if name.startswith('_foreach_'):
            launched = -(-len(lists[0]) // TENSORS_A_LAUNCH[len(lists)])
            launched += 3 if name == '_foreach_norm' else 0
        elif name in ('stack', 'cat'):
            launched = -(-len(lists[0]) // 128)
        else:
            launched = not name.startswith((*LAUNCHES_NOTHING, '_fused_'))
        self.counts[name] += int(launched)
        return func(*args, **(kwargs or {}))

    def __enter__(self):
        cls = type(multi_tensor_kernels._measure)
        grid = cls.__getitem__

        def counted(kernel, where):
            def launched(*args, **kwargs):
                self.counts[kernel.fn.__name__] += 1
                # The interpreter itself uses torch's operators.
                with _disable_current_modes():
                    return grid(kernel, where)(*args, **kwargs)

            return launched

        self._patch = mock.patch.object(cls, '__getitem__', counted)
        self._patch.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        self._patch.__exit__(*error)
        return super().__exit__(*error)


OPTIMIZERS = {
    'SGD': lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, fused=True),
    'AdamW': lambda params: torch.optim.AdamW(params, lr=0.1, fused=True),
}


def launches(
    config: dict[str, Any] | None,
    optimizer: str,
    scaled: bool,
    use_kernels: bool = True,
    transposed: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Counter[str]:
    """Launches of one step of a model of 156 tensors."""
    shapes = [(k % 5 + 1, 2) for k in range(156)]
    params = [nn.Parameter(torch.ones(shape, device=DEVICE, dtype=dtype)) for shape in shapes]
    fused = OPTIMIZERS[optimizer](params)
    for param in params:
        grad = torch.full_like(param, 0.1)
        param.grad = grad.T.contiguous().T if transposed else grad
    with contextlib.ExitStack() as stack:
        stack.enter_context(device_path())
        if config is not None:
            stack.enter_context(attach(fused, config))
        if scaled:
            fused.grad_scale = torch.tensor(8.0, device=DEVICE)
            fused.found_inf = torch.tensor(0.0, device=DEVICE)
        with with_kernels(use_kernels):
            # The first step of SGD creates its momentum, and the host has to know if it is skipped.
            # The second step is the first one that a kernel decides.
            fused.step()
            fused.step()
            with Launches() as mode:
                fused.step()
    return mode.counts


@pytest.mark.parametrize('scaled', [False, True])
@pytest.mark.parametrize('optimizer', OPTIMIZERS)
@pytest.mark.parametrize('rule', ['NormClip', 'ZClip', 'AutoClip'])
def test_norm_rule_adds_two_launches_to_the_fused_step(rule, optimizer, scaled):
    """With ``found_inf``, Adam-like optimizers undo their step count by one more call."""
    extra = launches(RULES[rule], optimizer, scaled)
    extra.subtract(launches(None, optimizer, scaled))
    kernel = {'NormClip': 'norm_clip', 'ZClip': 'zclip', 'AutoClip': 'autoclip'}[rule]
    expected = {'_measure': 1, kernel: 1}
    if optimizer == 'AdamW' and not scaled:
        expected['_foreach_sub_'] = 3
    assert {key: n for key, n in extra.items() if n} == expected
    assert sum(expected.values()) <= 10


@pytest.mark.parametrize('rule', ['NormClip inf', 'NormClip 1', 'NormClip 3', 'ZClip'])
def test_other_orders_and_layouts_add_two_launches(rule):
    extra = launches(RULES[rule], 'SGD', False, transposed=True)
    extra.subtract(launches(None, 'SGD', False))
    assert extra['_measure'] == 1 and extra.total() == 2


@pytest.mark.parametrize('rule', ['NormClip', 'ZClip', 'AutoClip'])
def test_float64_measured_by_torch_adds_at_most_ten_launches(rule):
    extra = launches(RULES[rule], 'SGD', False, dtype=torch.float64)
    extra.subtract(launches(None, 'SGD', False))
    assert extra['_measure'] == 0 and extra['_foreach_norm'] and extra['stack'] == 2
    assert 2 < extra.total() <= 10


def test_launch_count_without_kernels_is_above_the_bound():
    """The bound of the tests above fails without kernels."""
    for rule, least in (('NormClip', 25), ('ZClip', 60), ('AutoClip', 45)):
        assert launches(RULES[rule], 'SGD', False, use_kernels=False).total() > least


@pytest.mark.skipif(not INTERPRETED, reason='on a GPU torch itself watches: tests/gpu')
@pytest.mark.parametrize('rule', RULES)
def test_code_around_the_kernels_does_not_read_the_device(rule):
    """Without the launches: the interpreter reads all memory."""

    def measured(dtype, items, pointers, partials, arrived, norms, p):
        norms.fill_(2.0)

    def decided(call, norms, p, scale, scaler_inf, fold, record):
        fold.fill_(1.0)
        record.fill_(1.0)

    params = [nn.Parameter(torch.ones(3, k + 1)) for k in range(4)]
    optimizer = OPTIMIZERS['AdamW'](params)
    with (
        with_kernels(),
        device_path(),
        mock.patch.object(multi_tensor_kernels, 'measure', measured),
        mock.patch.object(decision, '_launch', decided),
        attach(optimizer, RULES[rule]),
    ):
        for step in range(3):
            for param in params:
                param.grad = torch.ones_like(param)
            if step == 0:
                optimizer.step()
                continue
            with Reads(methods=True) as reads:
                optimizer.step()
            assert reads.seen == []
