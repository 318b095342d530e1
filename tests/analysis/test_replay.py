"""What rules would have done to recorded steps, against formulas in float64 and real steps."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from gclip_mm.analysis.against_auto import advise_auto, compare, explain
from gclip_mm.analysis.replay import Effect, Replay
from gclip_mm.clipping import attach
from gclip_mm.clipping.rules.auto_units import FLOOR_NORMALIZED, FLOOR_ROW, FLOOR_VECTOR

from .recorded import record

STEPS = 6
AUTO = dict(type='Auto')


def make_net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 5, 3, bias=False),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(20, 4),
        nn.Linear(4, 2),
    )


def sgd(net, lr=0.1):
    """The last layer at a tenth of the rate, as ``lr_mult`` makes it."""
    groups = [
        {'params': list(net[:4].parameters()) + list(net[4].parameters())},
        {'params': list(net[5].parameters()), 'lr': 0.1 * lr},
    ]
    return torch.optim.SGD(groups, lr=lr, momentum=0.9)


def adamw(net, lr=0.1):
    return torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=0.1)


def random_grads(net, kept):
    """Sets gradients whose size differs between steps and units; keeps them and the weights."""
    generator = torch.Generator().manual_seed(1)

    def make(step):
        for p in net.parameters():
            sizes = 10 ** torch.empty(len(p)).uniform_(-3, 1, generator=generator)
            noise = torch.randn(p.shape, generator=generator)
            p.grad = noise * sizes.view(-1, *[1] * (p.ndim - 1))
        kept.append([(p.detach().clone(), p.grad.clone()) for p in net.parameters()])

    return make


@pytest.fixture(scope='module')
def recorded():
    """A net, its statistics at lr 0.1, and the weights and gradients of each step."""
    net, kept = make_net(), []
    stats = record(net, STEPS, sgd(net), random_grads(net, kept), is_taken=True)
    return net, stats, kept


def unit_norms(tensor):
    array = tensor.double().numpy()
    return np.linalg.norm(array.reshape(len(array) if array.ndim > 1 else 1, -1), axis=1)


def auto_by_hand(pairs, rates, reach=0.05, total=0.3, momentum=0.9):
    """docs/auto.md in float64, for the parameters of ``make_net``."""
    names = ['conv', 'gain', 'shift', 'linear', 'bias', 'last', 'last_bias']
    floors = {
        'conv': FLOOR_NORMALIZED,
        'gain': FLOOR_VECTOR * np.sqrt(5),
        'shift': FLOOR_VECTOR * np.sqrt(5),
        'linear': FLOOR_ROW,
        'bias': FLOOR_VECTOR * np.sqrt(4),
        'last': FLOOR_ROW,
        'last_bias': FLOOR_VECTOR * np.sqrt(2),
    }
    loose = {'linear', 'bias', 'last', 'last_bias'}
    steps, sizes = {}, {}
    for name, (weight, grad), rate in zip(names, pairs, rates, strict=True):
        steps[name] = rate / (1 - momentum) * unit_norms(grad)
        sizes[name] = np.maximum(unit_norms(weight), floors[name])
    moved = sum(np.linalg.norm(steps[n]) / np.linalg.norm(sizes[n]) for n in ('linear', 'last'))
    coefs = []
    for name in names:
        coef = np.minimum(1, reach * sizes[name] / steps[name])
        coefs.append(np.minimum(coef, total / moved) if name in loose else coef)
    return np.concatenate(coefs)


@pytest.mark.parametrize('lr', [0.001, 0.1, 3.0])
def test_effect_of_auto_is_that_of_the_documented_formula(recorded, lr):
    net, stats, kept = recorded
    effect = Replay(stats, net, sgd(net, lr), lr).effect(AUTO)
    rates = [lr] * 5 + [0.1 * lr] * 2
    expected = np.stack([auto_by_hand(pairs, rates) for pairs in kept])
    np.testing.assert_allclose(effect.coefs, expected, rtol=1e-5)
    grads = np.stack([np.concatenate([unit_norms(g) for _, g in pairs]) for pairs in kept])
    after = np.sqrt(((grads * expected) ** 2).sum(axis=1))
    np.testing.assert_allclose(effect.after, after, rtol=1e-5)
    assert effect.units == pytest.approx((expected < 1).mean())
    assert effect.steps == (expected < 1).any(axis=1).mean()
    advice = advise_auto(effect, lr, 0.9)
    assert advice.clip_grad == AUTO and advice.clipped == effect.units
    assert f'{np.median(after):.3g} in the median step' in advice.reason


def real_step(net, optimizer, pairs, clip_grad):
    """The gradients after a real step from recorded weights and gradients, and the new weights."""
    net = copy.deepcopy(net)
    with torch.no_grad():
        for p, (weight, grad) in zip(net.parameters(), pairs, strict=True):
            p.copy_(weight)
            p.grad = grad.clone()
    optimizer = optimizer(net)
    attach(optimizer, clip_grad, model=net)
    optimizer.step()
    return net


@pytest.mark.parametrize(
    'clip_grad',
    [
        AUTO,
        dict(type='Auto', reach=0.01, total=5.0),
        dict(max_norm=0.7),
        dict(type='ParamNormClip', max_norm=0.3),
        dict(type='AGC', clip_factor=0.02),
    ],
    ids=lambda clip_grad: '-'.join(map(str, clip_grad.values())),
)
def test_effect_is_that_of_a_real_step(recorded, clip_grad):
    net, stats, kept = recorded
    effect = Replay(stats, net, sgd(net), 0.1).effect(clip_grad)
    assert not effect.of_updates and effect.steps == 1
    for step, pairs in enumerate(kept):
        after = real_step(net, sgd, pairs, clip_grad)
        expected = np.concatenate([unit_norms(p.grad) for p in after.parameters()])
        np.testing.assert_allclose(
            stats.unit_grad[step] * effect.coefs[step], expected, rtol=1e-4, atol=1e-12
        )


def test_effect_of_a_stateful_rule_is_that_of_the_same_run(recorded):
    """ZClip learns its mean and variance from one step to the next."""
    net, stats, kept = recorded
    rule = dict(type='ZClip', warmup_steps=2, max_norm=3.0, z_threshold=0.1)
    effect = Replay(stats, net, sgd(net), 0.1).effect(rule)
    net = copy.deepcopy(net)
    optimizer = sgd(net)
    attach(optimizer, rule, model=net)
    for step, pairs in enumerate(kept):
        for p, (_, grad) in zip(net.parameters(), pairs, strict=True):
            p.grad = grad.clone()
        optimizer.step()
        norm = np.sqrt(sum(p.grad.double().square().sum().item() for p in net.parameters()))
        assert effect.after[step] == pytest.approx(norm, rel=1e-5)
    assert len(set(effect.coefs[:, 0])) > 2


def test_effect_of_a_clamp_is_known_to_the_width_of_the_bins(recorded):
    net, stats, kept = recorded
    replay = Replay(stats, net, sgd(net), 0.1)
    effect = replay.effect(dict(clip_value=0.1))
    for step, pairs in enumerate(kept):
        clamped = [g.clamp(-0.1, 0.1).norm().item() for _, g in pairs]
        assert effect.after[step] == pytest.approx(np.linalg.norm(clamped), rel=0.06)
    assert effect.units is None and effect.steps == 1
    assert replay.effect(dict(clip_value=1e6)).steps == 0


@pytest.mark.parametrize('lr', [0.002, 0.1])
def test_effect_of_auto_on_updates_is_that_of_a_real_step(lr):
    """The recorded movement of AdamW, scaled to the rate, is shortened as Auto shortens it."""
    net, kept = make_net(), []
    stats = record(net, 1, adamw(net, 0.1), random_grads(net, kept), is_taken=True)
    effect = Replay(stats, net, adamw(net, lr), lr).effect(AUTO)
    assert effect.of_updates and effect.units > 0
    after = real_step(make_net(), lambda net: adamw(net, lr), kept[0], AUTO)
    moved = zip(after.parameters(), kept[0], strict=True)
    expected = np.concatenate([unit_norms(p.detach() - old) for p, (old, _) in moved])
    np.testing.assert_allclose(
        stats.unit_move[0] * lr / 0.1 * effect.coefs[0], expected, rtol=1e-3, atol=1e-7
    )
    assert effect.after[0] == pytest.approx(np.linalg.norm(expected), rel=1e-3)
    norm = Replay(stats, net, adamw(net, lr), lr).effect(dict(max_norm=1.0))
    assert compare(norm, effect) is None
    assert 'shortened the movement' in advise_auto(effect, lr, 0.9).reason


def test_parameters_without_a_gradient_are_left_out(recorded):
    _, _, kept = recorded
    net = make_net()

    def make(step):
        for p, (_, grad) in zip(net.parameters(), kept[step], strict=True):
            p.grad = grad
        net[4].weight.grad = None

    stats = record(net, STEPS, sgd(net), make, is_taken=True)
    effect = Replay(stats, net, sgd(net), 0.1).effect(AUTO)
    is_frozen = stats.unit_param == stats.names.index('4.weight')
    assert not effect.live[:, is_frozen].any() and effect.live[:, ~is_frozen].all()
    assert (effect.coefs[:, is_frozen] == 1).all()
    with_it = Replay(recorded[1], net, sgd(net), 0.1).effect(AUTO)
    last = stats.unit_param == stats.names.index('5.weight')
    assert (effect.coefs[0, last] > with_it.coefs[0, last]).any(), 'it no longer takes its share'


@pytest.mark.parametrize(
    'clip_grad',
    [
        dict(type='AGC', exclude=['5.bias']),
        dict(max_norm=1.0, norm_type=float('inf')),
        dict(type='ValueClip', min=-1.0, max=2.0),
        dict(max_norm=1.0, schedule=dict(type='linear', start_factor=0.1, end=5)),
        dict(max_norm=1.0, carry=True),
    ],
)
def test_what_the_statistics_do_not_tell_is_not_claimed(recorded, clip_grad):
    net, stats, _ = recorded
    assert Replay(stats, net, sgd(net), 0.1).effect(clip_grad) is None


def test_statistics_of_another_model_are_refused(recorded):
    _, stats, _ = recorded
    other = make_net()[:5]
    with pytest.raises(ValueError, match='recorded with another model'):
        Replay(stats, other, torch.optim.SGD(other.parameters(), lr=0.1), 0.1)


def effect_of(coefs, norms):
    coefs, norms = np.array(coefs), np.array(norms)
    after = np.linalg.norm(norms * coefs, axis=1)
    before = np.linalg.norm(norms, axis=1)
    return Effect(coefs, norms > 0, before, after, 1.0, 1.0, False)


def test_comparison_of_a_hand_worked_case():
    norms = [[3.0, 4.0, 0.0, 0.0], [6.0, 8.0, 10.0, 0.0]]
    auto = effect_of([[1.0, 0.5, 1.0, 1.0], [0.5, 0.5, 0.1, 1.0]], norms)
    rule = effect_of([[0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0.5, 0.5]], norms)
    found = compare(rule, auto)
    # Five units have a gradient: one keeps half of what Auto leaves it, three the same, one five
    # times as much. The norms are 2.5 against sqrt(13), and 0.5 * sqrt(200) against sqrt(26).
    ratios = [2.5 / 13**0.5, 0.5 * 200**0.5 / 26**0.5]
    assert found.longer == pytest.approx(np.mean(ratios))
    assert (found.over, found.under) == (0.2, 0.2)
    assert 1 < found.furthest <= 5
    text = explain(found)
    assert f'{found.longer:.3g} times as long' in text and '20% of the units may move' in text
    assert 'No unit may move further' in explain(compare(auto, auto))
