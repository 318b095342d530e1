"""Missing gradients that change from step to step: tables are cut down, not made from scratch."""

from __future__ import annotations

import random
from unittest import mock

import pytest
import torch
from torch import nn

from gclip_mm import attach
from gclip_mm.clipping.gradients import kernel_backend
from gclip_mm.clipping.kernels import HostTensors, can_take
from tests.clipping.cases import Probe

needs_kernels = pytest.mark.skipif(not can_take(torch.ones(1)), reason='Numba is not installed')


def build():
    """Whole units, rows, columns (a transposed convolution), large units, no elements."""
    torch.manual_seed(0)
    layers = [nn.Linear(5, 7), nn.Conv2d(4, 6, 3), nn.ConvTranspose2d(4, 6, 3), nn.LayerNorm(8)]
    layers += [nn.Embedding(3, 40000), nn.Linear(3, 5), nn.ConvTranspose2d(4, 6, 3, groups=2)]
    model = nn.ModuleList(layers)
    model.empty = nn.Parameter(torch.empty(0, 4))
    return model


def run(model, drops, config):
    """Gradients after clipping and the log of each step, given the dropped places of each step."""
    params = list(model.parameters())
    optimizer = Probe(params)
    handle = attach(optimizer, config, model=model)
    found = []
    for step, gone in enumerate(drops):
        generator = torch.Generator().manual_seed(step)
        for i, param in enumerate(params):
            grad = torch.randn(param.shape, generator=generator)
            param.grad = None if i in gone else grad
        optimizer.step()
        found.append((optimizer.seen, handle.stats()))
    return found


def random_drops(count, steps, seed=0):
    rng = random.Random(seed)
    return [set(rng.sample(range(count), rng.randrange(count))) for _ in range(steps)]


@pytest.mark.parametrize('early', [True, False], ids=['scaled while measured', 'scaled after'])
@pytest.mark.parametrize('exclude', [[], ['^0', '^4']], ids=['one route', 'two routes'])
def test_clipping_is_bit_identical_to_that_with_tables_made_from_scratch(exclude, early):
    model = build()
    count = len(list(model.parameters()))
    config: dict = dict(type='AGC', clip_factor=0.01, exclude=exclude)
    config['nonfinite'] = 'skip' if early else 'raise'
    drops = random_drops(count, 30)
    shared = run(model, drops, config)
    with mock.patch.object(kernel_backend.RouteUnits, 'tables', return_value=None):
        scratch = run(model, drops, config)
    for (grads, stats), (expected, expected_stats) in zip(shared, scratch, strict=True):
        for a, b in zip(grads, expected, strict=True):
            assert a is b is None or torch.equal(a, b)
        assert stats == pytest.approx(expected_stats, rel=0, abs=0, nan_ok=True)


@needs_kernels
def test_new_sets_of_missing_gradients_make_no_new_tables():
    model = build()
    count = len(list(model.parameters()))
    drops = random_drops(count, 40)
    build_tables = HostTensors.__init__
    with mock.patch.object(
        HostTensors, '__init__', autospec=True, side_effect=build_tables
    ) as made:
        run(model, drops, dict(type='AGC', clip_factor=0.01))
    assert made.call_count == 1


def test_the_views_in_use_are_kept():
    model = build()
    params = list(model.parameters())
    optimizer = Probe(params)
    book = attach(optimizer, dict(type='AGC'), model=model).engine.book
    for param in params:
        param.grad = torch.ones_like(param)
    usual = book.collect()[0][0].view
    for drop in random_drops(len(params), 100, seed=1):
        for i, param in enumerate(params):
            param.grad = None if i in drop else torch.ones_like(param)
        book.collect()
        for param in params:
            param.grad = torch.ones_like(param)
        assert book.collect()[0][0].view is usual
    assert len(book._plans) <= 16
