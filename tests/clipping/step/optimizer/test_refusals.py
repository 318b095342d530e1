"""Every optimizer is clipped, refused by ``attach``, or causes a warning."""

from __future__ import annotations

import math
import sys
import types
import warnings
import weakref

import pytest
import torch
from torch import nn
from torch.optim.optimizer import _global_optimizer_pre_hooks

from gclip_mm import ClipConfigError, attach
from gclip_mm.clipping import GradClipEngine
from gclip_mm.clipping.step.optimizer import bystander
from tests.clipping.step.optimizer import stand_ins
from tests.clipping.step.optimizer.stand_ins import sgd

CONFIG = dict(type='NormClip', max_norm=1.0)


def make_params():
    return [nn.Parameter(torch.zeros(4, 4)), nn.Parameter(torch.zeros(4))]


def set_grads(params, value=10.0):
    for p in params:
        p.grad = torch.full_like(p, value)


def moved(params):
    """The distance of the parameters from 0, where they start."""
    return float(torch.cat([p.detach().flatten() for p in params]).norm())


def put_own_step(optimizer):
    """Give the instance a step that does not call that of the class."""

    @torch.no_grad()
    def step(closure=None):
        for group in optimizer.param_groups:
            for p in group['params']:
                p.sub_(p.grad)

    optimizer.step = step
    return optimizer


def put_logging(optimizer):
    """Give the instance a step that calls that of the class."""
    inner = optimizer.step
    optimizer.step = lambda *args: inner(*args)
    return optimizer


def put_own_step_under_scheduler(optimizer):
    own = put_own_step(optimizer).step
    optimizer.step = types.MethodType(lambda self, *args: own(*args), optimizer)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    return optimizer


def scheduled(make):
    def build(params):
        optimizer = make(params)
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
        return optimizer

    return build


#: Optimizers that must be clipped from the first step on.
CLIPPED = {
    'plain': sgd,
    'scheduler': scheduled(sgd),
    'no torch constructor': lambda ps: stand_ins.Lookahead(sgd(ps)),
    'no torch constructor, scheduler': scheduled(lambda ps: stand_ins.Lookahead(sgd(ps))),
    'step on the instance': lambda ps: put_own_step(sgd(ps)),
    'step on the instance, scheduler': lambda ps: put_own_step_under_scheduler(sgd(ps)),
    'logging step on the instance': lambda ps: put_logging(sgd(ps)),
    'Accelerate': lambda ps: stand_ins.Accelerated(sgd(ps)),
    'Accelerate around PostLocalSGD': lambda ps: stand_ins.Accelerated(
        stand_ins.PostLocalSGD(sgd(ps))
    ),
    'PostLocalSGD': lambda ps: stand_ins.PostLocalSGD(sgd(ps)),
    'Lightning': lambda ps: stand_ins.Lightning(sgd(ps)),
    'super().step()': stand_ins.OnlyPasses,
}

#: Optimizers that cannot be clipped, and the error.
REFUSED = {
    'no hooks, two optimizers': (stand_ins.TwoWithin, r'each of them \(\.matrices, \.others\)'),
    'no hooks, part': (stand_ins.PartWithin, r'optimizer in its \.matrices has other parameters'),
    'no hooks, none': (stand_ins.NothingWithin, r'_optimizer_step_pre_hooks.*Optimizer\.__init__'),
    'no Optimizer': (
        lambda ps: stand_ins.ScheduleFreeWrapper(sgd(ps)),
        r'torch\.optim\.Optimizer, got ScheduleFreeWrapper. Give the optimizer within it: \.base',
    ),
    'Detectron2 per parameter': (
        lambda ps: stand_ins.detectron2(torch.optim.SGD, print)(ps, lr=1.0),
        r'SGDWithGradientClip clips by itself.*SOLVER\.CLIP_GRADIENTS\.ENABLED = False',
    ),
    'Detectron2 global': (
        lambda ps: stand_ins.detectron2(torch.optim.AdamW, None, print)(ps, lr=1.0),
        r'AdamWWithGradientClip clips by itself.*SOLVER\.CLIP_GRADIENTS\.ENABLED = False',
    ),
    'Mask2Former': (
        lambda ps: stand_ins.mask2former(torch.optim.AdamW, 0.01)(ps, lr=1.0),
        r'FullModelGradientClippingOptimizer clips.*SOLVER\.CLIP_GRADIENTS\.ENABLED = False',
    ),
    'Detectron2 within Accelerate': (
        lambda ps: stand_ins.Accelerated(stand_ins.detectron2(torch.optim.SGD, print)(ps, lr=1.0)),
        r'SGDWithGradientClip clips by itself',
    ),
}


@pytest.mark.parametrize('kind', CLIPPED)
def test_every_step_from_the_first_is_clipped(kind):
    params = make_params()
    optimizer = CLIPPED[kind](params)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        handle = attach(optimizer, CONFIG)
        for _ in range(4):
            for p in params:
                p.data.zero_()
            set_grads(params)
            optimizer.step()
            assert moved(params) == pytest.approx(1.0)
        handle.remove()
    assert handle.stats()['grad_norm_post'] == pytest.approx(1.0)
    assert handle.engine.steps == 4


@pytest.mark.parametrize('kind', CLIPPED)
def test_nonfinite_step_changes_no_parameter(kind):
    params = make_params()
    optimizer = CLIPPED[kind](params)
    handle = attach(optimizer, CONFIG)
    set_grads(params, math.nan)
    optimizer.step()
    assert moved(params) == 0 and handle.stats()['nonfinite'] == 1


@pytest.mark.parametrize('kind', CLIPPED)
def test_engine_is_found_and_removed_by_the_attached_object(kind):
    params = make_params()
    optimizer = CLIPPED[kind](params)
    handle = attach(optimizer, CONFIG)
    assert GradClipEngine.on(optimizer) is handle.engine
    with pytest.raises(ClipConfigError, match='clipped already'):
        attach(optimizer, CONFIG)
    handle.remove()
    assert GradClipEngine.on(optimizer) is None
    set_grads(params)
    optimizer.step()
    assert moved(params) == pytest.approx(10 * math.sqrt(20))


@pytest.mark.parametrize('kind', REFUSED)
def test_refused_optimizer_raises_with_the_reason_and_is_unchanged(kind):
    build, message = REFUSED[kind]
    optimizer = build(make_params())
    inner = [v for v in vars(optimizer).values() if isinstance(v, torch.optim.Optimizer)]
    before = [dict(vars(o)) for o in (optimizer, *inner)]
    with pytest.raises(ClipConfigError, match=message):
        attach(optimizer, CONFIG)
    for each, attributes in zip((optimizer, *inner), before, strict=True):
        assert vars(each) == attributes
        assert 'step' not in vars(each)
        assert not getattr(each, '_optimizer_step_pre_hooks', None)
        assert not getattr(each, '_optimizer_step_post_hooks', None)


@pytest.mark.parametrize('config', [CONFIG, dict(max_norm=1.0, exclude=['nothing'])])
def test_invalid_route_leaves_no_hook(config):
    optimizer = sgd(make_params())
    bad = dict(config, exclude=['no such parameter'])
    with pytest.raises(ClipConfigError):
        attach(optimizer, bad, model=nn.Linear(2, 2))
    assert 'step' not in vars(optimizer) and not optimizer._optimizer_step_pre_hooks


def test_postlocalsgd_averages_in_a_skipped_step():
    params = make_params()
    optimizer = stand_ins.PostLocalSGD(sgd(params))
    attach(optimizer, CONFIG)
    set_grads(params, math.nan)
    optimizer.step()
    assert optimizer.averaged == 1


def test_wrapper_of_a_clipped_optimizer_is_refused():
    base = sgd(make_params())
    attach(base, CONFIG)
    outer = stand_ins.Lookahead(base)
    with pytest.raises(ClipConfigError, match=r'\._base_optimizer of Lookahead is clipped already'):
        attach(outer, CONFIG)
    assert 'step' not in vars(outer) and not outer._optimizer_step_pre_hooks


def test_optimizer_within_a_clipped_wrapper_is_refused():
    base = sgd(make_params())
    outer = stand_ins.Lookahead(base)
    handle = attach(outer, CONFIG)
    with pytest.raises(
        ClipConfigError,
        match=r'SGD is the \._base_optimizer of a Lookahead that is clipped already',
    ):
        attach(base, CONFIG)
    assert 'step' not in vars(base)
    handle.remove()
    attach(base, CONFIG)


class Accelerator:
    """Accelerate's class of that name, as far as its clipping goes."""

    def clip_grad_norm_(self, parameters, max_norm, norm_type=2):
        return nn.utils.clip_grad_norm_(parameters, max_norm, norm_type)

    def clip_grad_value_(self, parameters, clip_value):
        nn.utils.clip_grad_value_(parameters, clip_value)


@pytest.mark.parametrize('name', ['clip_grad_norm_', 'clip_grad_value_'])
@pytest.mark.parametrize('as_generator', [False, True])
def test_clipping_of_accelerate_on_top_warns(name, as_generator, monkeypatch):
    module = types.ModuleType('accelerate')
    module.Accelerator = type('Accelerator', (Accelerator,), dict(vars(Accelerator)))
    monkeypatch.setitem(sys.modules, 'accelerate', module)
    params, others = make_params(), make_params()
    optimizer = sgd(params)
    handle = attach(optimizer, CONFIG)

    def clip(ps):
        set_grads(ps, 3.0)
        getattr(module.Accelerator(), name)((p for p in ps) if as_generator else ps, 0.5)
        return [p.grad.abs().max() for p in ps]

    with pytest.warns(UserWarning, match=f'remove the call of accelerator.{name}'):
        clipped = clip(params)
    assert max(clipped) <= 0.5
    optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        clip(others)
        handle.remove()
        clip(params)


# -- loops that bypass the optimizer ---------------------------------------------------------------
def messages(caught):
    return [str(w.message) for w in caught if issubclass(w.category, UserWarning)]


def loop_of_sam(params, iterations):
    optimizer = stand_ins.SAM(params)
    handle = attach(optimizer, CONFIG)
    for _ in range(iterations):
        set_grads(params)
        optimizer.first_step()
        set_grads(params)
        optimizer.second_step()
    return handle


def test_sam_with_separate_half_steps_warns_once_after_three_iterations():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        assert loop_of_sam(make_params(), 2).stats() == {}
    assert not messages(caught)
    with pytest.warns(UserWarning) as record:
        handle = loop_of_sam(make_params(), 9)
        handle.remove()
    (message,) = messages(record)
    assert 'SAM.step was not called' in message
    assert 'attach to its .base_optimizer (SGD)' in message
    assert handle.stats() == {}


def test_sam_with_a_closure_is_clipped_without_a_warning():
    params = make_params()
    optimizer = stand_ins.SAM(params)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        handle = attach(optimizer, CONFIG)
        for _ in range(5):
            set_grads(params)
            optimizer.step(lambda: set_grads(params))
        handle.remove()
    assert handle.engine.steps == 5 and moved(params) == pytest.approx(5.0)


def test_steps_of_another_optimizer_of_the_same_parameters_warn():
    params = make_params()
    ours, other = sgd(params), sgd(params)
    attach(ours, CONFIG)
    set_grads(params)
    with pytest.warns(UserWarning, match=r'another optimizer \(SGD\), which is not'):
        for _ in range(3):
            other.step()


def test_alternating_optimizers_do_not_warn():
    params = make_params()
    ours, theirs = sgd(params), sgd(params)
    attach(ours, CONFIG)
    set_grads(params)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for _ in range(5):
            theirs.step()
            theirs.step()
            ours.step()


def test_gradients_outside_the_grad_attribute_warn_once():
    params = make_params()
    optimizer = stand_ins.Outside(params)
    handle = attach(optimizer, CONFIG)
    for p in params:
        p.main_grad = torch.ones_like(p)
    with pytest.warns(UserWarning, match=r'3 steps of Outside in a row had no gradient') as record:
        for _ in range(9):
            optimizer.step()
        handle.remove()
    assert len(messages(record)) == 1 and handle.stats() == {}


@pytest.mark.parametrize('how', ['remove', 'with'])
def test_removing_before_any_step_warns_if_there_are_gradients(how):
    params = make_params()
    optimizer = sgd(params)
    set_grads(params)
    with pytest.warns(UserWarning, match='SGD.step was never called while it was clipped'):
        if how == 'with':
            with attach(optimizer, CONFIG):
                pass
        else:
            attach(optimizer, CONFIG).remove()


def test_removing_unused_or_after_an_error_does_not_warn():
    params = make_params()
    optimizer = sgd(params)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        attach(optimizer, CONFIG).remove()
        set_grads(params)
        with pytest.raises(KeyError), attach(optimizer, CONFIG):
            raise KeyError


def test_global_optimizer_hook_is_removed_with_the_last_handle(monkeypatch):
    monkeypatch.setattr(bystander, '_watching', weakref.WeakSet())
    monkeypatch.setattr(bystander, '_hook', None)
    before = dict(_global_optimizer_pre_hooks)
    first, second = attach(sgd(make_params()), CONFIG), attach(sgd(make_params()), CONFIG)
    assert len(_global_optimizer_pre_hooks) == len(before) + 1
    first.remove()
    assert len(_global_optimizer_pre_hooks) == len(before) + 1
    second.remove()
    assert _global_optimizer_pre_hooks == before


def test_steps_of_other_optimizers_compile_in_one_graph():
    attached = sgd(make_params())
    attach(attached, CONFIG)
    params = make_params()
    other = stand_ins.PlainParent(params)
    set_grads(params)
    torch.compile(other.step, fullgraph=True, backend='eager')()
    assert moved(params) == pytest.approx(10 * math.sqrt(20))


# -- gradients that change within the step ---------------------------------------------------------
@pytest.mark.parametrize('cls', [stand_ins.Multiplies, stand_ins.Replaces])
def test_gradients_changed_before_the_step_of_the_parent_warn_once(cls):
    params = make_params()
    optimizer = cls(params)
    attach(optimizer, CONFIG)
    with pytest.warns(UserWarning, match='changes its gradients within step') as record:
        for _ in range(3):
            set_grads(params)
            optimizer.step()
    assert len(messages(record)) == 1


def test_horovod_warns_unless_gradients_are_reduced_before_step():
    params = make_params()
    optimizer = stand_ins.horovod(sgd(params))
    attach(optimizer, CONFIG)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        set_grads(params)
        optimizer.synchronize()
        with optimizer.skip_synchronize():
            optimizer.step()
    assert moved(params) == pytest.approx(1.0)
    set_grads(params)
    with pytest.warns(UserWarning, match=r'synchronize\(\) first, and step within'):
        optimizer.step()


# -- optimizers that clip, and that orthogonalize --------------------------------------------------
@pytest.mark.parametrize(
    ('cls', 'sign'),
    [
        (stand_ins.Cautious, r'its step calls clip_grad_norm_'),
        (stand_ins.Lamb, r'max_grad_norm=1\.0'),
    ],
)
def test_optimizer_that_seems_to_clip_warns(cls, sign):
    build = (lambda ps: cls(ps, lr=1.0)) if cls is stand_ins.Cautious else cls
    with pytest.warns(UserWarning, match=f'{cls.__name__} seems to clip by itself .{sign}'):
        attach(build(make_params()), CONFIG)


@pytest.mark.parametrize('off', [None, 0.0])
def test_optimizer_with_its_clipping_off_does_not_warn(off):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        attach(stand_ins.Lamb(make_params(), max_grad_norm=off), CONFIG)


@pytest.mark.parametrize('value', [0.5, 1, None, 0])
def test_a_trainer_of_lightning_that_clips_is_refused(value):
    model = nn.Linear(2, 2)
    model._trainer = types.SimpleNamespace(gradient_clip_val=value)
    optimizer = sgd(model.parameters())
    if value:
        with pytest.raises(ClipConfigError, match=r'remove gradient_clip_val=.* from Trainer'):
            attach(optimizer, CONFIG, model=model)
        assert 'step' not in vars(optimizer) and not optimizer._optimizer_step_pre_hooks
    else:
        attach(optimizer, CONFIG, model=model)


def test_a_step_that_cannot_be_set_leaves_no_hook():
    class Fixed(torch.optim.SGD):
        def __setattr__(self, name, value):
            if name == 'step':
                raise AttributeError(name)
            super().__setattr__(name, value)

    model = nn.BatchNorm1d(2)
    optimizer = Fixed(model.parameters(), lr=1.0)
    with pytest.raises(AttributeError):
        attach(optimizer, CONFIG, model=model)
    assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks
    assert not model._load_state_dict_post_hooks


MUONS = {
    'by its name': stand_ins.AdaMuon,
    'within another': lambda ps: stand_ins.Lookahead(stand_ins.AdaMuon(ps)),
}
if hasattr(torch.optim, 'Muon'):
    MUONS['of torch'] = lambda ps: torch.optim.Muon(ps[:1], lr=1.0)


@pytest.mark.parametrize('kind', MUONS)
@pytest.mark.parametrize(
    'config',
    [
        CONFIG,
        dict(type='AutoClip'),
        dict(max_norm=1.0, carry=True),
        dict(type='ChainClip', clips=[dict(type='ValueClip', clip_value=1.0), CONFIG]),
    ],
)
def test_muon_under_a_global_norm_warns(kind, config):
    with pytest.warns(UserWarning, match=r'does not bound the update of \w*Muon'):
        attach(MUONS[kind](make_params()), config)


@pytest.mark.parametrize('kind', MUONS)
@pytest.mark.parametrize('config', [dict(max_norm=math.inf), dict(type='AGC', clip_factor=0.1)])
def test_muon_without_a_bound_of_the_global_norm_does_not_warn(kind, config):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        attach(MUONS[kind](make_params()), config)


@pytest.mark.skipif(not hasattr(torch.optim, 'Muon'), reason='torch.optim.Muon came with torch 2.9')
def test_size_of_a_muon_step_is_independent_of_the_gradient_norm():
    sizes = []
    for scale in (1.0, 1e-3):
        torch.manual_seed(0)
        param = nn.Parameter(torch.zeros(4, 4))
        optimizer = torch.optim.Muon([param], lr=1.0, weight_decay=0.0)
        param.grad = torch.randn(4, 4) * scale
        optimizer.step()
        sizes.append(float(param.detach().norm()))
    assert sizes[0] == pytest.approx(sizes[1], rel=0.05)
