"""Who else is between a training loop and ``step``, with a skipped step and without one."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections import OrderedDict, defaultdict

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

import gclip_mm

from .contract import difference

NEVER = dict(type='NormClip', max_norm=1e9)
TIGHT = dict(type='NormClip', max_norm=0.5)


class Corrected(Optimizer):
    """Corrects its bias by a count of steps that it keeps for each group."""

    def __init__(self, params):
        super().__init__(params, dict(t=0))

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            group['t'] += 1
            for p in group['params']:
                if p.grad is not None:
                    p.sub_(p.grad / (1 - 0.9 ** group['t']))


class CountsThenSteps(torch.optim.SGD):
    """Counts in its own step before it calls its parent's."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.count = 0

    def step(self, closure=None):
        self.count += 1
        return super().step(closure)


class WithoutConstructor(Optimizer):
    """Does not run torch's constructor, as timm's Lookahead."""

    def __init__(self, base):
        self._optimizer_step_pre_hooks = OrderedDict()
        self._optimizer_step_post_hooks = OrderedDict()
        self.base = base
        self.param_groups = base.param_groups
        self.defaults = base.defaults
        self.state = defaultdict(dict)
        self.count = 0

    @torch.no_grad()
    def step(self, closure=None):
        self.count += 1
        return self.base.step(closure)


def parameter() -> nn.Parameter:
    return nn.Parameter(torch.zeros(1))


def take(p: nn.Parameter, step, *values: float) -> float:
    """Step with each value as the gradient; returns the parameter."""
    for value in values:
        p.grad = torch.tensor([value])
        step()
    return p.item()


def test_skip_does_not_advance_group_counters():
    p = parameter()
    optimizer = Corrected([p])
    gclip_mm.attach(optimizer, NEVER)
    assert take(p, optimizer.step, float('nan'), 1.0) == pytest.approx(-10.0)
    assert optimizer.param_groups[0]['t'] == 1


def test_skip_does_not_run_a_subclass_that_calls_its_parents_step():
    torch.optim.SGD([parameter()], lr=1.0)  # torch hooks the parent's step too
    p = parameter()
    optimizer = CountsThenSteps([p], lr=1.0)
    gclip_mm.attach(optimizer, TIGHT)
    assert take(p, optimizer.step, float('nan'), 8.0) == pytest.approx(-0.5)
    assert optimizer.count == 1


def test_optimizer_without_torchs_constructor_is_clipped_from_the_first_step():
    p = parameter()
    optimizer = WithoutConstructor(torch.optim.SGD([p], lr=1.0))
    gclip_mm.attach(optimizer, TIGHT)
    assert take(p, optimizer.step, 8.0) == pytest.approx(-0.5)
    assert take(p, optimizer.step, float('nan')) == pytest.approx(-0.5)
    assert optimizer.count == 1


@pytest.mark.parametrize('when', ['before', 'after', 'both'])
def test_skip_with_a_scheduler_built_before_or_after_attach(when):
    def schedule():
        return torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)

    p = parameter()
    optimizer = torch.optim.SGD([p], lr=1.0, momentum=0.9)
    schedulers = [schedule()] if when in ('before', 'both') else []
    handle = gclip_mm.attach(optimizer, TIGHT)
    if when in ('after', 'both'):
        schedulers.append(schedule())
    with warnings.catch_warnings():
        # A scheduler warns when it steps before the optimizer.
        warnings.simplefilter('error')
        assert take(p, optimizer.step, float('nan')) == 0.0
        assert not optimizer.state
        schedulers[0].step()
        assert take(p, optimizer.step, 8.0) == pytest.approx(-0.25)
    handle.remove()
    before = p.item()
    assert take(p, optimizer.step, 8.0) < before - 1.0, 'removed, and still clips'


def test_remove_leaves_step_as_it_was():
    optimizer = torch.optim.SGD([parameter()], lr=1.0)
    before = dict(vars(optimizer))
    gclip_mm.attach(optimizer, TIGHT).remove()
    assert vars(optimizer).keys() == before.keys()
    assert not optimizer._optimizer_step_pre_hooks


@pytest.mark.parametrize(
    'copied', [copy.copy, copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))]
)
def test_a_copy_of_an_attached_optimizer_steps_by_itself(copied):
    p = parameter()
    optimizer = torch.optim.SGD([p], lr=1.0)
    gclip_mm.attach(optimizer, TIGHT)
    take(p, optimizer.step, 8.0)
    twin = copied(optimizer)
    (q,) = twin.param_groups[0]['params']
    before, own = q.item(), p.item()
    assert take(q, twin.step, 8.0) == pytest.approx(before - 8.0)
    assert q is p or p.item() == own


def test_step_saved_before_attach_is_clipped_and_skips():
    p = parameter()
    optimizer = torch.optim.SGD([p], lr=1.0)
    step = optimizer.step
    gclip_mm.attach(optimizer, TIGHT)
    assert take(p, step, 8.0) == pytest.approx(-0.5)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        assert take(p, step, float('nan')) == pytest.approx(-0.5)


@pytest.mark.parametrize('fused', [False, True])
def test_scaler_calls_a_step_that_is_skipped(fused):
    """Its own check passed: ``unscale_`` was called while the gradients were finite."""
    p = parameter()
    optimizer = torch.optim.SGD([p], lr=1.0, fused=fused)
    gclip_mm.attach(optimizer, NEVER)
    scaler = torch.amp.GradScaler('cpu', init_scale=4.0)
    scaler.scale(torch.ones(()))
    p.grad = torch.tensor([4.0])
    scaler.unscale_(optimizer)
    p.grad.fill_(float('nan'))
    scaler.step(optimizer)
    scaler.update()
    assert p.item() == 0.0
    p.grad = torch.tensor([4.0])
    scaler.step(optimizer)
    assert p.item() == pytest.approx(-1.0)


def test_an_error_inside_step_leaves_the_next_step_clipped():
    p = parameter()
    optimizer = torch.optim.SGD([p], lr=1.0)
    gclip_mm.attach(optimizer, TIGHT)

    def broken():
        raise KeyError('data')

    with pytest.raises(KeyError):
        optimizer.step(broken)
    assert take(p, optimizer.step, 8.0) == pytest.approx(-0.5)
    assert take(p, optimizer.step, float('nan'), 8.0) == pytest.approx(-1.0)


def test_skip_inside_an_outer_optimizer_skips_the_attached_one_only():
    p = parameter()
    base = torch.optim.SGD([p], lr=1.0)
    outer = WithoutConstructor(base)
    gclip_mm.attach(base, TIGHT)
    assert take(p, outer.step, float('nan'), 8.0) == pytest.approx(-0.5)
    assert outer.count == 2


# -- wrappers that hold the optimizer -------------------------------------------------------------
def _wrappers():
    def accelerated(optimizer):
        pytest.importorskip('accelerate')
        from accelerate import Accelerator
        from accelerate.optimizer import AcceleratedOptimizer

        Accelerator(cpu=True)
        return AcceleratedOptimizer(optimizer)

    def post_local(optimizer):
        from torch.distributed.algorithms.model_averaging.averagers import ModelAverager
        from torch.distributed.optim import PostLocalSGDOptimizer

        class NoAverager(ModelAverager):
            def __init__(self):
                self.step = 0

            def average_parameters(self, params):
                self.step += 1

        return PostLocalSGDOptimizer(optimizer, NoAverager())

    return [
        pytest.param(accelerated, 'optimizer', id='accelerate'),
        pytest.param(post_local, 'optim', id='post-local-sgd'),
    ]


@pytest.mark.parametrize(('wrap', 'attribute'), _wrappers())
def test_wrapper_is_clipped_or_refused_by_the_name_of_what_to_give(wrap, attribute):
    p = parameter()
    wrapper = wrap(torch.optim.SGD([p], lr=1.0))
    try:
        gclip_mm.attach(wrapper, TIGHT)
    except gclip_mm.ClipConfigError as error:
        assert f'.{attribute}' in str(error)
        return
    assert take(p, wrapper.step, 8.0) == pytest.approx(-0.5)
    assert take(p, wrapper.step, float('nan')) == pytest.approx(-0.5)


@pytest.mark.parametrize(('wrap', 'attribute'), _wrappers())
@pytest.mark.parametrize('first', ['attach', 'wrap'])
def test_optimizer_inside_a_wrapper_is_clipped(wrap, attribute, first):
    p = parameter()
    optimizer = torch.optim.SGD([p], lr=1.0)
    wrapper = None if first == 'attach' else wrap(optimizer)
    gclip_mm.attach(optimizer, TIGHT)
    wrapper = wrapper or wrap(optimizer)
    for _ in range(2):
        before = p.item()
        assert take(p, wrapper.step, 8.0) == pytest.approx(before - 0.5)
        assert take(p, wrapper.step, float('nan')) == pytest.approx(before - 0.5)


# -- closures -------------------------------------------------------------------------------------
class Sharpness(Optimizer):
    """A minimal SAM: moves along the gradient, calls its closure there, moves back and steps."""

    def __init__(self, params, lr=0.1, rho=0.05):
        super().__init__(params, dict(lr=lr, rho=rho, t=0))

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            group['t'] += 1
            for p in group['params']:
                self.state[p]['home'] = p.clone()
                p.add_(p.grad, alpha=group['rho'])
        with torch.enable_grad():
            loss = closure()
        for group in self.param_groups:
            for p in group['params']:
                p.copy_(self.state[p].pop('home'))
                p.sub_(p.grad, alpha=group['lr'])
        return loss


@pytest.mark.parametrize('bad', ['first', 'second'])
def test_skipped_closure_step_puts_back_what_it_moved(bad):
    p = nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = Sharpness([p])
    gclip_mm.attach(optimizer, NEVER)
    factors = iter([float('nan'), 1.0] if bad == 'first' else [1.0, float('nan')])

    def closure():
        p.grad = None
        loss = (p * p).sum() * next(factors)
        loss.backward()
        return loss

    before = copy.deepcopy(optimizer.state_dict())
    closure()
    optimizer.step(closure)
    assert p.tolist() == [1.0, 2.0]
    assert not difference(before, optimizer.state_dict())


@pytest.mark.parametrize('nan_at', range(2, 9))
def test_lbfgs_recovers_from_a_nan_trial_point_as_torch_alone_does(nan_at):
    def run(attached: bool) -> tuple[list[float], int]:
        p = nn.Parameter(torch.tensor([1.5, 5.0]))
        optimizer = torch.optim.LBFGS([p], lr=1.0, line_search_fn='strong_wolfe', max_iter=10)
        if attached:
            gclip_mm.attach(optimizer, NEVER)
        calls = 0

        def closure():
            nonlocal calls
            calls += 1
            p.grad = None
            loss = (1 - p[0]) ** 2 + 100 * (p[1] - p[0] ** 2) ** 2
            if calls == nan_at:
                loss = loss * float('nan')
            loss.backward()
            return loss

        for _ in range(3):
            optimizer.step(closure)
        return p.tolist(), calls

    try:
        alone = run(attached=False)
    except IndexError:
        pytest.skip('torch alone fails at this point')
    if alone[0] != alone[0] or any(x != x for x in alone[0]):
        pytest.skip('torch alone ends in NaN at this point')
    assert run(attached=True) == alone
