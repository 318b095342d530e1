"""A skipped step restores the buffers of the model to their values after the last taken step."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn

from gclip_mm.clipping import attach
from gclip_mm.clipping.step.buffers import BufferKeeper
from tests.clipping.cases import equal

CONFIG = dict(type='NormClip', max_norm=0.5)


class Counter(nn.Module):
    """Counts forward passes in a non-persistent buffer and keeps a queue of feature means."""

    def __init__(self):
        super().__init__()
        self.register_buffer('calls', torch.zeros((), dtype=torch.int64), persistent=False)
        self.register_buffer('queue', torch.zeros(3, 4))
        self.register_buffer('nothing', None)

    def forward(self, x):
        self.calls += 1
        self.queue = torch.cat([x.detach().mean((0, 2, 3))[None, :4], self.queue[:-1]])
        return x


def make_net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        Counter(),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3),
        nn.BatchNorm2d(4),
        nn.Flatten(),
        nn.Linear(4 * 16, 2),
    )


def batch(step, bad=False):
    rng = torch.Generator().manual_seed(step)
    images = torch.randn(4, 3, 8, 8, generator=rng)
    if bad:
        images[0, 0, 0, 0] = math.inf
    return images


def everything(net):
    return {
        **{name: p.detach().clone() for name, p in net.named_parameters()},
        **{name: b.clone() for name, b in net.named_buffers()},
    }


def train(net, optimizer, steps, accumulate=1):
    for bad_in, step in steps:
        optimizer.zero_grad()
        for part in range(accumulate):
            net(batch(10 * step + part, bad=bad_in == part)).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize('fused', [False, True])
@pytest.mark.parametrize('accumulate', [1, 3])
def test_run_with_skipped_steps_equals_a_run_without_them(fused, accumulate):
    nets = [make_net(), make_net()]
    optimizers = [torch.optim.SGD(n.parameters(), lr=0.1, momentum=0.9, fused=fused) for n in nets]
    handles = [attach(o, CONFIG, model=n) for o, n in zip(optimizers, nets, strict=True)]
    clean = [(None, step) for step in (0, 1, 4, 5)]
    train(nets[0], optimizers[0], clean, accumulate)
    # A bad image in the first or in the last micro-batch of a step.
    bad = [*clean[:2], (0, 2), (accumulate - 1, 3), *clean[2:], (0, 6)]
    train(nets[1], optimizers[1], bad, accumulate)
    assert equal(everything(nets[0]), everything(nets[1]))
    assert equal(optimizers[0].state_dict(), optimizers[1].state_dict())
    assert handles[1].stats()['nonfinite'] == 1
    for net in nets:
        net.eval()
        assert torch.isfinite(net(batch(7))).all()


def test_skipping_the_first_step_restores_buffers_from_before_attach():
    net = make_net()
    before = everything(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    attach(optimizer, CONFIG, model=net)
    train(net, optimizer, [(0, 0)])
    assert equal(everything(net), before)


def test_skipped_step_restores_buffers_loaded_after_attach():
    net, other = make_net(), make_net()
    train(other, torch.optim.SGD(other.parameters(), lr=0.1), [(None, 0), (None, 1)])
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    attach(optimizer, CONFIG, model=net)
    net.load_state_dict(other.state_dict())
    loaded = everything(net)
    train(net, optimizer, [(0, 2)])
    assert equal(everything(net), loaded)


@pytest.mark.parametrize('policy', ['zero', 'off'])
def test_policies_zero_and_off_keep_the_buffers_of_a_bad_step(policy):
    net = make_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    attach(optimizer, dict(**CONFIG, nonfinite=policy), model=net)
    train(net, optimizer, [(None, 0), (0, 1)])
    assert net[2].calls == 2


def test_step_skipped_by_a_scaler_restores_buffers():
    net = make_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    attach(optimizer, CONFIG, model=net)
    scaler = torch.amp.GradScaler('cpu', init_scale=4.0)
    before = None
    for step, bad in enumerate([False, True]):
        before = everything(net)
        optimizer.zero_grad()
        scaler.scale(net(batch(step, bad)).square().mean()).backward()
        scaler.step(optimizer)
        scaler.update()
    assert equal(everything(net), before)


def test_flag_on_the_device_restores_buffers_by_a_masked_copy():
    net = make_net()
    keeper = BufferKeeper()
    keeper.watch(net)
    start = everything(net)
    net(batch(0))
    after = everything(net)
    keeper.settle(torch.tensor(0.0))
    assert equal(everything(net), after)
    net(batch(1, bad=True))
    assert not torch.isfinite(net[1].running_mean).all()
    keeper.settle(torch.tensor(1.0))
    assert equal(everything(net), after)
    assert not equal(start, after)


def test_buffers_are_restored_after_the_model_changed_dtype():
    net = make_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    attach(optimizer, CONFIG, model=net)
    net.double()
    optimizer.zero_grad()
    for step, bad in ((0, False), (1, True)):
        before = everything(net)
        optimizer.zero_grad()
        net(batch(step, bad).double()).square().mean().backward()
        optimizer.step()
    assert equal(everything(net), before)


def test_copies_and_pickles_of_the_model_work_without_the_keeper():
    net = make_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    handle = attach(optimizer, CONFIG, model=net)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        twin.load_state_dict(net.state_dict())
        assert equal(everything(twin), everything(net))
    handle.remove()
    train(net, optimizer, [(0, 0)])
    assert net[2].calls == 1
    assert not net._load_state_dict_post_hooks


def test_skipped_step_restores_buffers_of_a_compiled_model():
    net = make_net()
    compiled = torch.compile(net, backend='eager')
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    attach(optimizer, CONFIG, model=compiled)
    train(compiled, optimizer, [(None, 0)])
    before = everything(net)
    train(compiled, optimizer, [(0, 1)])
    assert equal(everything(net), before)
