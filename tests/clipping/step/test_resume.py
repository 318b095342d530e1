"""Resumed runs, and runs through attach, wrapper or hook, end with bit-identical weights."""

import io
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from gclip_mm.clipping import attach
from tests.clipping.cases import CASES, equal, make_optimizer

pytest.importorskip('mmengine')

from mmengine.logging import MessageHub
from mmengine.optim import OptimWrapper

from gclip_mm.engine import GClipHook, GClipOptimWrapper

STEPS = 50


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3), nn.LayerNorm(3))


def loss_of(model, t):
    rng = torch.Generator().manual_seed(t)
    x = torch.randn(5, 4, generator=rng) * (20 if t % 9 == 8 else 1)
    if t % 11 == 10:
        return model[0](x).square().mean()  # other layers have no gradient in this iteration
    loss = model(x).sin().square().mean() * (1 + t % 3)
    return loss * float('nan') if t % 23 == 22 else loss


def through_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


class Run:
    """A model, an optimizer and a wrapper that accumulates ``count`` iterations per step."""

    def __init__(self, config, sgd, fused, count):
        self.model = make_model()
        optimizer = make_optimizer(config, self.model.parameters(), sgd, fused=fused)
        self.wrapper = GClipOptimWrapper(optimizer, clip_grad=config, accumulative_counts=count)
        self.wrapper.initialize_count_status(self.model, 0, STEPS * count)
        self.count = count

    def train(self, begin, end):
        for t in range(begin, end):
            with self.wrapper.optim_context(self.model):
                self.wrapper.update_params(loss_of(self.model, t))

    def save(self):
        return through_file({'model': self.model.state_dict(), 'optim': self.wrapper.state_dict()})

    def load(self, state, t):
        self.model.load_state_dict(state['model'])
        self.wrapper.load_state_dict(state['optim'])
        self.wrapper.initialize_count_status(self.model, t, STEPS * self.count)


@pytest.mark.parametrize(
    ('sgd', 'fused', 'count'),
    [(True, False, 2), (True, True, 1), (False, False, 1), (False, True, 2)],
    ids=['sgd accumulated', 'sgd fused', 'adamw', 'adamw fused accumulated'],
)
@pytest.mark.parametrize('case', CASES)
def test_resumed_run_is_bit_identical_to_an_uninterrupted_run(case, sgd, fused, count):
    whole = Run(CASES[case], sgd, fused, count)
    whole.train(0, STEPS * count)
    part = Run(CASES[case], sgd, fused, count)
    for t in range(0, STEPS * count, 10 * count):
        part.train(t, t + 10 * count)
        state = part.save()
        part = Run(CASES[case], sgd, fused, count)
        part.load(state, t + 10 * count)
    assert equal(whole.save(), part.save())
    assert all(torch.isfinite(p).all() for p in whole.model.parameters())


def by_attach(config, model, optimizer):
    attach(optimizer, config, model=model)
    return OptimWrapper(optimizer)


def by_wrapper(config, model, optimizer):
    return GClipOptimWrapper(optimizer, clip_grad=config)


def by_hook(config, model, optimizer):
    wrapper = OptimWrapper(optimizer)
    hub = MessageHub.get_instance('doors')
    runner = SimpleNamespace(model=model, optim_wrapper=wrapper, message_hub=hub)
    GClipHook(clip_grad=config).before_run(runner)
    return wrapper


@pytest.mark.parametrize('fused', [False, True], ids=['plain', 'fused'])
@pytest.mark.parametrize('case', CASES)
def test_attach_wrapper_and_hook_give_identical_weights(case, fused):
    results = []
    for door in (by_attach, by_wrapper, by_hook):
        model = make_model()
        optimizer = make_optimizer(CASES[case], model.parameters(), fused=fused)
        wrapper = door(CASES[case], model, optimizer)
        for t in range(20):
            wrapper.update_params(loss_of(model, t))
        results.append([p.detach() for p in model.parameters()])
    assert equal(results[0], results[1]) and equal(results[0], results[2])


@pytest.mark.parametrize('chained', [False, True])
def test_refused_state_changes_no_rule(chained):
    """Rules before the one that refuses must not keep the state they accepted."""
    auto, other = (dict(type='AutoClip', window=n) for n in (20, 10))

    def trained(last, seed):
        torch.manual_seed(seed)
        params = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
        model = torch.nn.ParameterDict({'a': params[0], 'b': params[1]})
        optimizer = torch.optim.SGD(params, lr=0.1)
        config = dict(last, rules=[dict(match='^a', type='ZClip')])
        if chained:
            config = dict(type='ChainClip', clips=[dict(type='ZClip'), last])
        engine = attach(optimizer, config, model=model).engine
        for _ in range(3):
            for p in params:
                p.grad = torch.randn(3)
            optimizer.step()
        return engine

    engine, donor = trained(auto, 0), trained(other, 1)
    before = engine.state_dict()
    with pytest.raises(ValueError, match='window=10, this run has window=20'):
        engine.load_state_dict(donor.state_dict())
    after = engine.state_dict()
    assert str(after) == str(before) and after['steps'] == 3
