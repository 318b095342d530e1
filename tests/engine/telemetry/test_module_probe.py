"""Norms, updates and clipped units of a measured step, compared with autograd and a copy."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from gclip_mm.clipping.step.engine import GradClipEngine
from gclip_mm.engine.telemetry.module_probe import ModuleProbe, cut_name


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.ModuleDict(
            {'layer1': nn.Sequential(nn.Linear(5, 7), nn.Tanh()), 'layer2': nn.Linear(7, 6)}
        )
        self.head = nn.Linear(6, 3)
        self.unused = nn.Linear(2, 2)
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x):
        x = self.backbone['layer2'](self.backbone['layer1'](x))
        return self.head(x) * self.scale


NAMES = ['(root)', 'backbone.layer1.0', 'backbone.layer2', 'head', 'unused']


def watched_step(clip_grad, fused=False, optimizer=torch.optim.SGD, arm=True, **kwargs):
    torch.manual_seed(0)
    net = Net()
    optimizer = optimizer(net.parameters(), **{'lr': 0.1, **kwargs}, fused=fused)
    engine = GradClipEngine(optimizer, clip_grad, model=net)
    probe = ModuleProbe(optimizer, net)
    probe.armed = arm
    engine.observers.append(probe)
    loss = net(torch.randn(20, 5)).square().sum()
    loss.backward()
    grads = {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}
    before = copy.deepcopy(net.state_dict())
    optimizer.step()
    return net, probe, grads, before


def module_norms(tensors: dict) -> list[float]:
    """The norm of all tensors of each module, computed directly."""
    found = dict.fromkeys(NAMES, 0.0)
    for name, tensor in tensors.items():
        found[name.rpartition('.')[0] or '(root)'] += tensor.double().square().sum().item()
    return [math.sqrt(found[name]) for name in NAMES]


RULES = [
    dict(type='NormClip', max_norm=0.5),
    dict(type='NormClip', max_norm=0.5, norm_type='inf'),
    dict(type='AGC', clip_factor=0.05),
    dict(type='ValueClip', clip_value=0.5),
    dict(type='ParamNormClip', max_norm=1.0),
    dict(type='NormClip', max_norm=0.5, exclude=['head'], rules=[dict(match='layer2', max_norm=9)]),
]


@pytest.mark.parametrize('fused', [False, True])
@pytest.mark.parametrize('rule', RULES, ids=lambda rule: '-'.join(map(str, rule.values())))
def test_norms_and_updates_match_autograd(rule, fused):
    net, probe, grads, before = watched_step(rule, fused)
    assert probe.has_seen
    stats, units = probe.read(with_units=True)
    assert stats.names == NAMES
    np.testing.assert_allclose(stats.grad, module_norms(grads), rtol=1e-5)
    np.testing.assert_allclose(stats.weight, module_norms(before), rtol=1e-6)
    change = {name: value - before[name] for name, value in net.state_dict().items()}
    np.testing.assert_allclose(stats.update, module_norms(change), rtol=1e-5)
    # Rows of the weights, and one each for bias and scale.
    assert stats.units.tolist() == [1, 7 + 1, 6 + 1, 3 + 1, 2 + 1]
    assert set(units) == set(NAMES) - {'unused'}
    expected = torch.cat([grads['head.weight'].norm(dim=1), grads['head.bias'].norm()[None]])
    torch.testing.assert_close(units['head'].grad.float(), expected)
    weights = torch.cat([before['head.weight'].norm(dim=1), before['head.bias'].norm()[None]])
    torch.testing.assert_close(units['head'].weight.float(), weights)


@pytest.mark.parametrize('fused', [False, True])
def test_global_coefficient_counts_every_unit_as_clipped(fused):
    stats, _ = watched_step(dict(type='NormClip', max_norm=0.5), fused)[1].read()
    assert stats.clipped.tolist() == [1, 8, 7, 4, 0]
    stats, _ = watched_step(dict(type='NormClip', max_norm=1e6), fused)[1].read()
    assert not stats.clipped.any()


def test_agc_clips_the_units_above_its_bound():
    _, probe, grads, before = watched_step(dict(type='AGC', clip_factor=1.0))
    stats, _ = probe.read()
    expected = dict.fromkeys(NAMES, 0)
    for name, grad in grads.items():
        dims = 1 if grad.ndim > 1 else None
        over = grad.norm(dim=dims) > before[name].norm(dim=dims).clamp(min=1e-3)
        expected[name.rpartition('.')[0] or '(root)'] += int(over.sum())
    assert 0 < sum(expected.values()) < 20
    assert stats.clipped.tolist() == list(expected.values())


@pytest.mark.parametrize('optimizer', [torch.optim.SGD, torch.optim.AdamW, torch.optim.Adagrad])
def test_units_held_back_most_are_named(optimizer):
    """SGD: shares of the gradient. AdamW, Adagrad: shares of the movement that Auto has left."""
    by_update = optimizer is not torch.optim.SGD
    net, probe, grads, before = watched_step(dict(type='Auto'), optimizer=optimizer, lr=1.0)
    twin = Net()
    twin.load_state_dict(before)
    for name, param in twin.named_parameters():
        param.grad = grads.get(name)
    optimizer(twin.parameters(), lr=1.0).step()
    shares = {}
    for name, param in net.named_parameters():
        if name not in grads:
            continue
        if by_update:
            now = param.detach() - before[name]
            then = twin.get_parameter(name).detach() - before[name]
        else:
            now, then = param.grad, grads[name]
        dims = 1 if param.ndim > 1 else 0
        shares[name] = (now.double().norm(dim=dims) / then.double().norm(dim=dims)).view(-1)
    stats, _ = probe.read()
    expected = sorted(shares, key=lambda name: float(shares[name].min()))
    assert {held.name for held in stats.held} == set(expected)
    kept = [held.kept for held in stats.held]
    assert kept == sorted(kept)
    for held in stats.held:
        least = pytest.approx(float(shares[held.name].min()), rel=1e-3)
        assert held.kept == least and float(shares[held.name][held.unit]) == least
    heads = [float(v.min()) for n, v in shares.items() if n.startswith('head')]
    assert stats.kept[NAMES.index('head')] == pytest.approx(min(heads), rel=1e-3)
    assert stats.kept[NAMES.index('unused')] == 1
    over = sum(int((v < 1 - 1e-5).sum()) for v in shares.values())
    assert stats.clipped.sum() == over > 0


def test_exempt_module_is_not_clipped():
    stats, _ = watched_step(dict(type='NormClip', max_norm=0.1, exclude=['head']))[1].read()
    assert stats.clipped[NAMES.index('head')] == 0
    assert stats.clipped[NAMES.index('backbone.layer2')] == 7


def test_unarmed_probe_does_nothing():
    _, probe, _, _ = watched_step(RULES[0], arm=False)
    assert not probe.has_seen and not probe._before and probe._norms is None


def test_skipped_nonfinite_step_is_not_measured():
    torch.manual_seed(0)
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    engine = GradClipEngine(optimizer, RULES[0], model=net)
    probe = ModuleProbe(optimizer, net)
    engine.observers.append(probe)
    probe.armed = True
    for factor in (float('nan'), 1.0):
        optimizer.zero_grad()
        (net(torch.randn(20, 5)) * factor).sum().backward()
        optimizer.step()
        assert probe.has_seen == (factor == 1.0)
    assert np.isfinite(probe.read()[0].update).all()


def test_norms_are_without_the_loss_scale():
    torch.manual_seed(0)
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, fused=True)
    engine = GradClipEngine(optimizer, dict(type='NormClip', max_norm=0.5), model=net)
    probe = ModuleProbe(optimizer, net)
    engine.observers.append(probe)
    probe.armed = True
    scaler = torch.amp.GradScaler('cpu', init_scale=1024.0)
    loss = net(torch.randn(20, 5)).square().sum()
    expected = torch.autograd.grad(loss, list(net.head.parameters()), retain_graph=True)
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    stats, units = probe.read(with_units=True)
    norm = math.hypot(*(g.norm().item() for g in expected))
    assert stats.grad[NAMES.index('head')] == pytest.approx(norm, rel=1e-5)
    torch.testing.assert_close(units['head'].grad[:3], expected[0].norm(dim=1))


def test_modules_are_grouped_by_depth():
    _, probe, _, _ = watched_step(RULES[0])
    stats, _ = probe.read()
    shallow = stats.grouped(1)
    assert shallow.names == ['(root)', 'backbone', 'head', 'unused']
    assert shallow.grad[1] == pytest.approx(math.hypot(*stats.grad[1:3]))
    assert shallow.units.tolist() == [1, 15, 4, 3]
    assert stats.grouped(9).names == stats.names
    assert cut_name('a.b.c', 2) == 'a.b'
