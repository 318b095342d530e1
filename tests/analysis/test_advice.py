"""Advice from statistics with a hand-computed answer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from gclip_mm.analysis.advice import advise, norm_bound, two_digits, value_bound
from gclip_mm.analysis.gradient_stats import load_stats, octave_sizes, save_stats
from gclip_mm.clipping import CLIPPERS, attach

from .recorded import record


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 10), nn.Linear(10, 4, bias=False))


@pytest.fixture
def stats(net):
    generator = torch.Generator().manual_seed(1)

    def make_grads(step):
        for p in net.parameters():
            p.grad = torch.randn(p.shape, generator=generator) * (1 + step % 3)

    return record(net, 12, make_grads=make_grads)


def test_recorder_matches_hand_computed_statistics(net):
    generator = torch.Generator().manual_seed(1)
    grads = []

    def make_grads(step):
        for p in net.parameters():
            p.grad = torch.randn(p.shape, generator=generator)
        grads.append([p.grad.clone() for p in net.parameters()])

    optimizer = torch.optim.SGD(
        [{'params': net[0].parameters(), 'lr': 0.02}, {'params': net[1].parameters()}], lr=0.1
    )
    stats = record(net, 3, optimizer, make_grads)
    assert stats.names == ['0.weight', '0.bias', '1.weight']
    assert stats.has_scale.tolist() == [True, False, True]
    np.testing.assert_allclose(stats.lr_mult, [0.2, 0.2, 1.0])
    for s in range(3):
        expected = [g.norm().item() for g in grads[s]]
        np.testing.assert_allclose(stats.grad[s], expected, rtol=1e-5)
        assert stats.norm[s] == pytest.approx(np.linalg.norm(expected), rel=1e-6)
        first = 0.2 * grads[s][0].norm(dim=1) / net[0].weight.norm(dim=1)
        last = grads[s][2].norm(dim=1) / net[1].weight.norm(dim=1)
        expected = torch.cat([first, last]).detach()
        np.testing.assert_allclose(stats.unit_ratio[s], expected, rtol=1e-5)
        assert stats.elements[s].sum(1).tolist() == [60, 10, 40]
    assert stats.unit_param.tolist() == [0] * 10 + [1] + [2] * 4
    assert stats.scaled.tolist() == [True] * 10 + [False] + [True] * 4


def test_norms_after_a_clamp_match_torch(stats, net):
    """The histogram gives the norm within the width of its bins."""
    p = net[0].weight
    for clip_value in (0.05, 0.5, 3.0):
        expected = p.grad.clamp(-clip_value, clip_value).norm().item()
        assert stats.value_clipped(clip_value)[-1, 0] == pytest.approx(expected, rel=0.06)


def test_missing_gradient_counts_as_zero(net):
    def make_grads(step):
        net[0].weight.grad = torch.ones_like(net[0].weight)
        net[1].weight.grad = None

    stats = record(net, 2, make_grads=make_grads)
    assert stats.grad[:, 2].tolist() == [0.0, 0.0]
    assert not stats.unit_ratio[:, 10:].any()


def test_state_survives_a_file(stats, tmp_path):
    save_stats(stats, tmp_path / 'stats.npz')
    again = load_stats(tmp_path / 'stats.npz')
    assert again.names == stats.names
    np.testing.assert_allclose(again.unit_ratio, stats.unit_ratio, rtol=1e-6)
    np.savez(tmp_path / 'other.npz', x=1)
    with pytest.raises(ValueError, match='no gradient statistics'):
        load_stats(tmp_path / 'other.npz')


def test_norm_bound_keeps_95_percent_of_units_within_the_ratio(stats):
    bound = norm_bound(stats, 0.1)
    after = stats.unit_ratio * (bound / stats.norm)[:, None]
    # For an even number of steps the median of the inverse differs from the inverse of the median.
    assert np.median(np.quantile(after, 0.95, axis=1)) == pytest.approx(0.1, rel=0.02)


def test_value_bound_keeps_90_percent_of_units_within_the_ratio(stats):
    bound = value_bound(stats, 0.1)
    kept = stats.value_clipped(bound) / stats.grad
    after = stats.unit_ratio * kept[:, stats.unit_param[stats.scaled]]
    assert np.median(np.quantile(after, 0.9, axis=1)) == pytest.approx(0.1, rel=1e-6)
    assert value_bound(stats, 1e9) == np.inf


def by_name(*args, **kwargs):
    return {advice.name: advice for advice in advise(*args, **kwargs)}


def test_clipped_step_has_the_stated_reach(net, stats):
    """A unit clipped by AGC's factor, with momentum, moves by 5% of its weights."""
    factor = by_name(stats, lr=0.5, momentum=0.9)['agc'].clip_grad['clip_factor']
    assert factor == pytest.approx(0.05 * 0.1 / 0.5)
    before = net[1].weight.detach().clone()
    optimizer = torch.optim.SGD([net[1].weight], lr=0.5, momentum=0.9)
    attach(optimizer, dict(type='AGC', clip_factor=factor), model=net)
    net[1].weight.grad = torch.ones_like(before) * 100
    optimizer.step()
    for _ in range(300):
        # One gradient, then zeros until momentum has decayed.
        net[1].weight.grad = torch.zeros_like(before)
        optimizer.step()
    moved = (net[1].weight - before).norm(dim=1) / before.norm(dim=1)
    torch.testing.assert_close(moved, torch.full_like(moved, 0.05), rtol=1e-3, atol=0)


def test_thresholds_are_inverse_to_the_learning_rate(stats):
    slow, fast = by_name(stats, 1.0, 0.9), by_name(stats, 10.0, 0.9)
    for name, key in (('norm', 'max_norm'), ('agc', 'clip_factor'), ('zclip', 'max_norm')):
        ratio = slow[name].clip_grad[key] / fast[name].clip_grad[key]
        assert ratio == pytest.approx(10, rel=0.05)
    # A clamp changes more elements as its bound falls, so the bound falls at least as fast.
    assert slow['value'].clip_grad['clip_value'] >= 9 * fast['value'].clip_grad['clip_value']


def test_momentum_lowers_the_thresholds(stats):
    with_it, without = by_name(stats, 1.0, 0.9), by_name(stats, 1.0, 0.0)
    ratio = without['agc'].clip_grad['clip_factor'] / with_it['agc'].clip_grad['clip_factor']
    assert ratio == pytest.approx(10)


def test_low_learning_rate_clips_only_spikes(stats):
    low = by_name(stats, 1e-6, 0.9)
    assert low['norm'].clip_grad['max_norm'] == two_digits(2 * stats.norm.max())
    assert low['norm'].clipped == 0
    assert low['value'].clipped < 0.02
    assert low['agc'].clipped <= 0.001
    assert 'spikes alone' in low['norm'].reason
    assert 'spikes alone' in low['value'].reason


def test_clamp_limits_an_explosion(stats):
    clip_value = by_name(stats, 1e-6, 0.9)['value'].clip_grad['clip_value']
    # Each step's elements times 1000; all elements of a bin have the size of its middle.
    sizes = np.minimum(1000 * octave_sizes(), clip_value)
    lengths = np.sqrt((stats.elements * sizes**2).sum(axis=(1, 2)))
    assert np.median(lengths) == pytest.approx(2 * stats.norm.max(), rel=0.1)


def test_adaptive_optimizer_gets_other_advice(stats):
    one, other = by_name(stats, 1e-4, 0.9, False), by_name(stats, 1.0, 0.9, False)
    assert [a.clip_grad for a in one.values()] == [a.clip_grad for a in other.values()]
    assert one['norm'].clipped == pytest.approx(0.1, abs=0.1)
    assert 'meant for SGD' in one['agc'].reason


@pytest.mark.parametrize('proportional', [True, False])
def test_every_advised_config_builds(stats, proportional):
    advices = advise(stats, 0.1, 0.9, proportional)
    assert [a.name for a in advices] == ['value', 'norm', 'agc', 'zclip']
    for advice in advices:
        kwargs = dict(advice.clip_grad)
        CLIPPERS.build(kwargs.pop('type'), kwargs)
        assert 0 <= advice.clipped <= 1
        for number in advice.clip_grad.values():
            if isinstance(number, float):
                assert repr(number) in repr(advice.clip_grad)


@pytest.mark.parametrize(('lr', 'momentum', 'reach'), [(0, 0, 1), (1, 1, 1), (1, 0, 0)])
def test_input_out_of_range_is_refused(stats, lr, momentum, reach):
    with pytest.raises(ValueError, match='must be above 0'):
        advise(stats, lr, momentum, reach=reach)


def test_empty_statistics_are_refused(stats):
    with pytest.raises(ValueError, match='no recorded step'):
        advise(stats._replace(grad=np.zeros_like(stats.grad)), 0.1)
    with pytest.raises(ValueError, match='no weights with units'):
        advise(stats._replace(has_scale=np.zeros(3, bool)), 0.1)
