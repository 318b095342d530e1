"""The four base classes of rules, with toy rules: kernels, sharding, state, folding, shortcuts."""

from __future__ import annotations

import inspect
import math
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from gclip_mm.clipping import AGC, CLIPPERS, NormClip, ValueClip, attach
from gclip_mm.clipping.base import (
    ElementClipper,
    Finite,
    GlobalClipper,
    Ranges,
    TensorClipper,
    UnitClipper,
)
from gclip_mm.clipping.gradients.names import describe_params
from gclip_mm.clipping.gradients.sharding import Sharding, ShardSpec
from gclip_mm.clipping.gradients.view import GradView
from gclip_mm.clipping.kernels import HostTensors, UnitTensors
from gclip_mm.clipping.small_state import columns, remember, scalars, to_tensor
from tests.clipping.cases import Runner, equal

# The last tensor is read by rows and has several chunks for the kernels; the second is one unit.
SHAPES = [(4, 3), (5,), (3, 2, 2), (300, 257)]


class Seen(NamedTuple):
    """The largest value so far; 0-d or (parameters,) float64."""

    top: Tensor


class ToyGlobal(GlobalClipper):
    """Clip the global norm at half of the largest norm of the steps before."""

    State = Seen

    def decide(self, norm, finite):
        state = self.state or Seen(norm.new_zeros((), dtype=torch.float64))
        (n, top), where = scalars(norm, *state)
        bound = where(top > 0, top, n) / 2
        coef = where(n > bound, bound / where(n > 0, n, 1.0), 1.0)
        if finite.learns:
            self.state = state
            remember(state, (where(n > top, n, top),), finite)
        return to_tensor(coef, norm), bound


class ToyTensor(TensorClipper):
    """Clip the norm of each tensor at half of its largest norm so far."""

    State = Seen
    per_param = dict(top=0.0)

    def decide(self, norms, view, finite):
        state = self.state or Seen(norms.new_zeros(view.size, dtype=torch.float64))
        (n, top), xp = columns(norms, view, *state)
        bounds = xp.where(top > 0, top, n) / 2
        coefs = xp.where(n > bounds, bounds / n, 1.0)
        if finite.learns:
            self.state = state
            remember(state, (xp.maximum(top, n),), finite, view)
        return to_tensor(coefs, norms), to_tensor(bounds, norms)


class ToyUnit(UnitClipper):
    """Clip the norm of each unit at a quarter of the norm of its weights."""

    def decide(self, norms, weights, view):
        bounds = weights / 4
        return torch.where(norms > bounds, bounds / norms, 1.0), bounds


class ToyElement(ElementClipper):
    """Clamp each tensor to half of its largest element so far."""

    State = Seen
    per_param = dict(top=0.0)

    def ranges(self, view, finite):
        peaks = view.norms(math.inf)
        state = self.state or Seen(peaks.new_zeros(view.size, dtype=torch.float64))
        (peak, top), xp = columns(peaks, view, *state)
        high = xp.where(top > 0, top, peak) / 2
        if finite.learns:
            self.state = state
            remember(state, (xp.maximum(top, peak),), finite, view)
        return Ranges(-high, high, to_tensor(high, peaks).max())


class ToyRange(ElementClipper):
    """Clamp all elements to a fixed range, which a kernel applies in the measuring pass."""

    def fixed_range(self):
        return -0.3, 0.5

    def ranges(self, view, finite):
        return Ranges(*self.fixed_range(), 0.5)


TOYS = [ToyGlobal, ToyTensor, ToyUnit, ToyElement, ToyRange]
WITH_STATE = [cls for cls in TOYS if cls.State is not None]
every_toy = pytest.mark.parametrize('cls', TOYS)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """The toy rules, registered for one test only."""
    monkeypatch.setattr(CLIPPERS, '_classes', dict(CLIPPERS._classes))
    for cls in TOYS:
        CLIPPERS.register_module()(cls)


def make_params():
    rng = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=rng)) for shape in SHAPES]


def gradients(step):
    rng = torch.Generator().manual_seed(10 + step)
    return [torch.randn(shape, generator=rng) for shape in SHAPES]


def run(cls, steps=3):
    """The gradients that the optimizer gets in each step, and the records of the steps."""
    runner = Runner(dict(type=cls.__name__), make_params())
    return [(runner(gradients(step)), runner.handle.stats()) for step in range(steps)]


def assert_close(got, expected, rtol=1e-5):
    for (grads, stats), (expected_grads, expected_stats) in zip(got, expected, strict=True):
        for grad, other in zip(grads, expected_grads, strict=True):
            torch.testing.assert_close(grad, other, rtol=rtol, atol=1e-7)
        assert stats == pytest.approx(expected_stats, rel=rtol)


@every_toy
def test_toy_rule_takes_at_most_15_lines_and_clips(cls):
    source, doc = inspect.getsource(cls).strip().split('\n'), cls.__doc__.split('\n')
    assert len([line for line in source if line.strip()]) - len(doc) <= 15
    for grads, stats in run(cls):
        assert 0 < stats['grad_norm_post'] < stats['grad_norm']
        total = torch.cat([grad.flatten() for grad in grads]).double().norm().item()
        assert total == pytest.approx(stats['grad_norm_post'], rel=1e-5)


# -- Kernels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('cls', 'kernels', 'methods'),
    [
        (ToyTensor, HostTensors, ['norms', 'scale']),
        (ToyUnit, UnitTensors, ['measure', 'scale']),
        (ToyRange, HostTensors, ['scan']),
    ],
)
def test_cpu_kernels_are_used_and_equal_torch(cls, kernels, methods, monkeypatch, request):
    pytest.importorskip('numba')
    called = set()
    for name in methods:
        method = getattr(kernels, name)

        def noted(*args, _method=method, _name=name, **kwargs):
            called.add(_name)
            return _method(*args, **kwargs)

        monkeypatch.setattr(kernels, name, noted)
    got = run(cls)
    assert called == set(methods)
    called.clear()
    request.getfixturevalue('without_host_kernels')
    assert_close(got, run(cls))
    assert not called


def test_cpu_kernels_give_the_norms_of_a_global_rule_that_need_not_match_torch(monkeypatch):
    pytest.importorskip('numba')
    assert not ToyGlobal.matches_torch and NormClip.matches_torch
    norms = mock.Mock(side_effect=HostTensors.norms, autospec=True)
    monkeypatch.setattr(HostTensors, 'norms', lambda *args: norms(*args))
    run(ToyGlobal, 1)
    assert norms.called
    norms.reset_mock()
    Runner(dict(type='NormClip', max_norm=1.0), make_params())(gradients(0))
    assert not norms.called


# -- Sharding --------------------------------------------------------------------------------------


class Ranks:
    """All-reduce between threads that represent the processes of a group."""

    def __init__(self, count):
        self.barrier = threading.Barrier(count, timeout=60)
        self.parts = [None] * count
        self.local = threading.local()

    def all_reduce(self, values, op, group):
        self.parts[self.local.rank] = values.clone()
        self.barrier.wait()
        parts = torch.stack(self.parts)
        self.barrier.wait()
        values.copy_(parts.sum(0) if op == dist.ReduceOp.SUM else parts.amax(0))


def clip_views(cls, params, batches, sharding=None):
    """Return the clipped gradients of some steps, and the norms before and after clipping."""
    rule, slots = cls(), list(range(len(params)))
    view = GradView(describe_params(params, None), slots, slots, len(slots), sharding)
    out = []
    with torch.no_grad():
        for grads in batches:
            grads = [grad.clone() for grad in grads]
            view.load(grads)
            measure = rule.measure(view)
            outcome = rule.clip(view, measure, Finite(True))
            if outcome.coef is not None:
                view.backend.scale_all(outcome.coef)
            out.append((grads, dict(norm=float(measure.norm), post=float(outcome.post))))
    return out


@every_toy
def test_rule_on_shards_equals_the_rule_on_whole_tensors(cls):
    params = [param.detach() for param in make_params()]
    batches = [gradients(step) for step in range(3)]
    ranks, halves = Ranks(2), [len(param) // 2 for param in params]
    specs = [ShardSpec(('group',), (0,), param.shape) for param in params]

    def work(rank):
        ranks.local.rank = rank

        def cut(tensors):
            pairs = zip(tensors, halves, strict=True)
            return [(t[:half], t[half:])[rank].contiguous() for t, half in pairs]

        sharding = Sharding(specs, list(range(len(specs))))
        return clip_views(cls, cut(params), [cut(grads) for grads in batches], sharding)

    with mock.patch.object(dist, 'all_reduce', ranks.all_reduce), ThreadPoolExecutor(2) as pool:
        first, second = pool.map(work, range(2))
    whole = [
        ([torch.cat(pair) for pair in zip(a, b, strict=True)], norms)
        for (a, norms), (b, _) in zip(first, second, strict=True)
    ]
    assert [norms for _, norms in first] == [norms for _, norms in second]
    assert_close(whole, clip_views(cls, params, batches))


# -- State -----------------------------------------------------------------------------------------


@every_toy
def test_resumed_rule_continues_bit_identically(cls):
    first = Runner(dict(type=cls.__name__), make_params())
    for step in range(2):
        first(gradients(step))
    saved = first.handle.state_dict()
    resumed = Runner(dict(type=cls.__name__), make_params())
    resumed.handle.load_state_dict(saved)
    for step in range(2, 5):
        assert equal(resumed(gradients(step)), first(gradients(step)))
    assert equal(resumed.handle.state_dict(), first.handle.state_dict())


@pytest.mark.parametrize('cls', WITH_STATE)
def test_nonfinite_step_leaves_the_state_unchanged(cls):
    runner = Runner(dict(type=cls.__name__), make_params())
    runner(gradients(0))
    state = runner.rule.state_dict()
    spoilt = gradients(1)
    spoilt[2][0, 1, 1] = math.nan
    runner(spoilt)
    assert equal(runner.rule.state_dict(), state)


@pytest.mark.parametrize('cls', WITH_STATE)
def test_missing_gradient_leaves_the_entry_of_its_parameter_unchanged(cls):
    runner = Runner(dict(type=cls.__name__), make_params())
    runner(gradients(0))
    before = runner.rule.state.top.clone()
    larger = [None if i == 1 else 3 * grad for i, grad in enumerate(gradients(0))]
    got = runner(larger)
    assert got[1] is None
    after = runner.rule.state.top
    if cls.per_param:
        expected = before * torch.tensor([3.0, 1.0, 3.0, 3.0])
    else:
        expected = torch.linalg.vector_norm(
            torch.cat([g.flatten() for g in larger if g is not None])
        )
    torch.testing.assert_close(after, expected, rtol=1e-5, atol=0, check_dtype=False)


# -- Fused optimizers ------------------------------------------------------------------------------


def fused_step(cls):
    """Take one step of fused SGD; return the kernel's inputs, the parameters and the stats."""
    params, seen = make_params(), []
    optimizer = torch.optim.SGD(params, lr=0.1, fused=True)
    handle = attach(optimizer, dict(type=cls.__name__))
    for param, grad in zip(params, gradients(0), strict=True):
        param.grad = grad
    kernel = torch._fused_sgd_

    def noted(own, grads, *args, grad_scale=None, **kwargs):
        seen.append(([grad.clone() for grad in grads], grad_scale))
        return kernel(own, grads, *args, grad_scale=grad_scale, **kwargs)

    with mock.patch.object(torch, '_fused_sgd_', noted):
        optimizer.step()
    ((grads, scale),) = seen
    return grads, scale, params, handle.stats()


def test_global_rule_is_folded_into_fused_sgd_without_writing_a_gradient():
    grads, scale, _, stats = fused_step(ToyGlobal)
    assert equal(grads, gradients(0))
    assert float(scale) == pytest.approx(1 / stats['clip_coef']) == pytest.approx(2.0)


@pytest.mark.parametrize('cls', [cls for cls in TOYS if not cls.is_global])
def test_other_rules_write_the_gradients_that_fused_sgd_gets(cls):
    grads, scale, _, _ = fused_step(cls)
    assert scale is None or float(scale) == 1.0
    expected = run(cls, 1)[0][0]
    for grad, other in zip(grads, expected, strict=True):
        torch.testing.assert_close(grad, other, rtol=1e-5, atol=1e-7)


@every_toy
def test_fused_sgd_steps_by_the_clipped_gradients(cls):
    _, _, params, _ = fused_step(cls)
    for param, start, grad in zip(params, make_params(), run(cls, 1)[0][0], strict=True):
        torch.testing.assert_close(param, start - 0.1 * grad, rtol=1e-5, atol=1e-6)


# -- Shortcuts -------------------------------------------------------------------------------------


class NewDecision:
    """A mixin that scales all gradients to zero; it precedes a rule in the bases of a class."""

    def decide(self, norms, *_):
        return torch.zeros_like(norms), torch.zeros_like(norms)

    def ranges(self, view, finite):
        return Ranges(0.0, 0.0, 0.0)


RULES = [
    (AGC, 'unit_limits', dict(clip_factor=0.01)),
    (ValueClip, 'fixed_range', dict(clip_value=0.1)),
    (NormClip, 'decision_kernel', dict(max_norm=1.0)),
]
every_shortcut = pytest.mark.parametrize(('rule', 'name', 'keys'), RULES)


def own_decision(rule):
    """A subclass that overrides the decision itself."""
    method = 'ranges' if rule is ValueClip else 'decide'
    return type('Own', (rule,), {method: getattr(NewDecision, method)})


def mixed_in(rule):
    """A subclass that gets its decision from a mixin."""
    return type('Mixed', (NewDecision, rule), {})


@every_shortcut
@pytest.mark.parametrize('subclass', [own_decision, mixed_in])
def test_subclass_with_another_decision_loses_the_shortcut(rule, name, keys, subclass):
    assert rule(**keys).shortcut(name) is not None
    cls = subclass(rule)
    assert cls(**keys).shortcut(name) is None
    assert type('Below', (cls,), {})(**keys).shortcut(name) is None
    CLIPPERS.register_module(name='Other')(cls)
    for grad in Runner(dict(type='Other', **keys), make_params())(gradients(0)):
        assert not grad.any()


@every_shortcut
def test_subclass_with_another_constructor_keeps_the_shortcut(rule, name, keys):
    class Preset(rule):
        def __init__(self):
            super().__init__(**keys)

    preset = Preset()
    assert preset.shortcut(name) == getattr(preset, name)


@every_shortcut
def test_mixin_behind_the_rule_keeps_the_shortcut(rule, name, keys):
    cls = type('Mixed', (rule, NewDecision), {})
    assert cls(**keys).shortcut(name) is not None


@every_shortcut
def test_subclass_that_overrides_decision_and_shortcut_keeps_its_own(rule, name, keys):
    cls = type('Both', (own_decision(rule),), {name: lambda self, *_: 'own'})
    assert cls(**keys).shortcut(name)() == 'own'


@pytest.mark.parametrize('cls', [ToyGlobal, ToyTensor, ToyUnit, ToyElement])
def test_rule_without_shortcuts_has_none(cls):
    for name in ('decision_kernel', 'unit_limits', 'fixed_range'):
        assert cls().shortcut(name) is None


# -- Mistakes in a rule ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('kind', 'decision', 'message'),
    [
        (GlobalClipper, torch.tensor(0.5), r'shape \(\), and bounds.* a tensor of shape \(\)$'),
        (GlobalClipper, (0.5, 1.0), r'or one number\. It returned 0\.5 and 1\.0'),
        (GlobalClipper, (torch.ones(1), 1.0), r'returned a tensor of shape \(1,\) and 1\.0'),
        (GlobalClipper, (torch.tensor(0.5), None), r'a tensor of shape \(\) and None'),
        (TensorClipper, (torch.ones(3), torch.ones(3)), r'coefficients, a tensor of shape \(4,\)'),
        (UnitClipper, (torch.ones(313), 1.0), r'bounds, a tensor of that shape\. It returned'),
        (UnitClipper, (torch.ones(4), torch.ones(4)), r'returned a tensor of shape \(4,\)'),
    ],
)
def test_decision_of_another_shape_is_refused(kind, decision, message):
    cls = type('Mistaken', (kind,), {'decide': lambda self, *_: decision})
    CLIPPERS.register_module()(cls)
    run = Runner(dict(type='Mistaken'), make_params())
    with pytest.raises(TypeError, match=f'Mistaken.decide must return a pair.*{message}'):
        run(gradients(0))


@pytest.mark.parametrize('as_tensor', [False, True])
def test_one_bound_for_all_tensors_is_a_number_or_a_tensor(as_tensor):
    """The bound is logged as it is: what stands for all tensors is no norm of their bounds."""

    @CLIPPERS.register_module()
    class MedianClip(TensorClipper):
        def decide(self, norms, view, finite):
            bound = norms.median()
            coefs = torch.where(norms > bound, bound / norms, 1.0)
            return coefs, bound if as_tensor else float(bound)

    params = [torch.nn.Parameter(torch.zeros(size)) for size in (1, 4, 9)]
    optimizer = torch.optim.SGD(params, lr=1.0)
    handle = attach(optimizer, dict(type='MedianClip'))
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    assert handle.stats()['clip_threshold'] == pytest.approx(2.0)
    assert handle.stats()['grad_norm_post'] == pytest.approx(3.0)  # norms 1, 2 and 2


def test_state_that_is_not_declared_is_refused_on_resume():
    cls = type('Undeclared', (ToyGlobal,), {'State': None, 'decide': ToyGlobal.decide})
    CLIPPERS.register_module()(cls)
    run = Runner(dict(type='Undeclared'), make_params())
    run(gradients(0))
    run.handle.load_state_dict(run.handle.state_dict())
    with pytest.raises(ValueError, match='in the class attribute State'):
        run(gradients(1))


def test_registry_refuses_a_string_of_aliases_and_a_class_that_is_no_rule():
    with pytest.raises(TypeError, match=r"aliases must be a tuple of names such as \('short',\)"):
        CLIPPERS.register_module(aliases='short')
    with pytest.raises(TypeError, match='does not subclass Clipper'):
        CLIPPERS.register_module()(dict)
