"""Tests of the kernels for the update of a step against torch's optimizers, in float64."""

import contextlib
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn

from gclip_mm import attach
from gclip_mm.clipping.gradients.kernel_backend import KernelBackend
from gclip_mm.clipping.gradients.movement import movement_of
from gclip_mm.clipping.gradients.names import ParamInfo
from gclip_mm.clipping.gradients.update_kernels import UpdateKernels
from gclip_mm.clipping.gradients.update_parts import UpdateParts
from gclip_mm.clipping.kernels import HostUpdates, Units
from tests.clipping.cases import equal

pytest.importorskip('numba')
OPTIMIZERS = {
    'Adam': lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.01),
    'Adam amsgrad': lambda p: torch.optim.Adam(p, lr=0.1, amsgrad=True),
    'AdamW': lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.3),
    'AdamW fused': lambda p: torch.optim.AdamW(p, lr=0.1, fused=True),
    'AdamW groups': lambda p: torch.optim.AdamW(
        [dict(params=[q], lr=0.01 * (k + 1), eps=1e-3 / (k + 1)) for k, q in enumerate(p)][::-1]
    ),
    'Adamax': lambda p: torch.optim.Adamax(p, lr=0.1),
    'RMSprop': lambda p: torch.optim.RMSprop(p, lr=0.1),
    'NAdam': lambda p: torch.optim.NAdam(p, lr=0.1),
}


def make_model(channels_last=False, transposed=False, width=40):
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, width, 3),
        nn.BatchNorm2d(width),
        nn.Conv2d(width, width, 3, groups=4),
        nn.Conv2d(width, 2 * width, 3, bias=False),
    ]
    if transposed:
        layers.append(nn.ConvTranspose2d(2 * width, width, 2))
    model = nn.Sequential(*layers)
    return model.to(memory_format=torch.channels_last) if channels_last else model


def run(optimizer_of, kernels=True, **options):
    """Train with a bound that shortens some units.

    Returns:
        The weights, and for each step whether kernels shortened it.
    """
    model = make_model(**options)
    optimizer = optimizer_of(list(model.parameters()))
    rng = torch.Generator().manual_seed(1)
    done = []
    shorten = UpdateKernels.shorten

    def spy(self, coefs):
        done.append(shorten(self, coefs))
        return done[-1]

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(UpdateKernels, 'shorten', spy))
        if not kernels:
            stack.enter_context(mock.patch.object(UpdateKernels, 'measure', return_value=None))
        stack.enter_context(attach(optimizer, dict(type='Auto'), model=model))
        for _ in range(4):
            for param in model.parameters():
                size = torch.rand((), generator=rng) * 10
                grad = torch.randn(param.shape, generator=rng) * size
                param.grad = torch.empty_like(param).copy_(grad)
            optimizer.step()
    return [param.detach().clone() for param in model.parameters()], done


@pytest.mark.parametrize('channels_last', [False, True])
@pytest.mark.parametrize('name', OPTIMIZERS)
def test_kernels_give_the_weights_of_torch_operations(name, channels_last):
    with_kernels, done = run(OPTIMIZERS[name], channels_last=channels_last)
    assert done == [True] * 4, 'the kernels were used'
    without, done = run(OPTIMIZERS[name], kernels=False, channels_last=channels_last)
    assert done == [False] * 4
    torch.testing.assert_close(with_kernels, without, rtol=2e-6, atol=2e-7)


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_norms_and_shortened_weights_equal_the_difference_in_float64(name):
    model = make_model()
    params = list(model.parameters())
    optimizer = OPTIMIZERS[name](params)
    infos = [
        ParamInfo(param, f'{place}.{key}', module, key)
        for place, module in model.named_modules()
        for key, param in module.named_parameters(recurse=False)
    ]
    backend = KernelBackend(infos, list(range(len(infos))))
    group_of = {id(p): group for group in optimizer.param_groups for p in group['params']}
    groups = [group_of[id(param)] for param in params]
    movement = movement_of(optimizer, params, groups, {})
    for step in range(3):
        for param in params:
            param.grad = torch.full_like(param, 0.5).uniform_(-1, 1) * 10.0**step
        old = [param.detach().double() for param in params]
        movement.start([param.detach() for param in params])
        optimizer.step()
        moved = [
            param.detach().double() - before for param, before in zip(params, old, strict=True)
        ]
        owner = backend.unit_owner
        norms = backend.change_norms(movement)
        expected = torch.empty(len(norms), dtype=torch.float64)
        coefs = torch.rand(len(norms), generator=torch.Generator().manual_seed(step)).double()
        coefs[::3] = 1.0
        kept = []
        for i, (before, delta) in enumerate(zip(old, moved, strict=True)):
            rows = delta.flatten(1) if delta.ndim > 1 else delta.reshape(1, -1)
            expected[owner == i] = rows.norm(dim=1)
            share = coefs[owner == i].reshape(-1, 1)
            kept.append(before + (share * rows).view_as(delta))
        torch.testing.assert_close(norms, expected, rtol=1e-4, atol=1e-7)
        backend.shorten_change(movement, coefs)
        for param, wanted in zip(params, kept, strict=True):
            torch.testing.assert_close(param.detach().double(), wanted, rtol=1e-5, atol=2e-6)


def test_transposed_convolution_falls_back():
    weights, done = run(OPTIMIZERS['AdamW'], transposed=True)
    assert done == [False] * 4
    assert all(weight.isfinite().all() for weight in weights)


def test_axes_in_another_order_fall_back():
    """Elements of the state would be taken for those of other weights."""
    params = [torch.randn(4, 3, 2, 2)]
    tables = HostUpdates([Units(0, 4, 12)], params, 1)
    assert tables.take_update(params, [[torch.zeros(4, 3, 2, 2)]])
    other = torch.zeros(4, 3, 2, 2).to(memory_format=torch.channels_last)
    assert not tables.take_update(params, [[other]])
    assert not tables.take_update(params, [params]), 'the same memory'
    assert not tables.take_update(params, [[torch.zeros(4, 3, 2, 2, dtype=torch.float64)]])


@pytest.mark.parametrize('size', [1e-25, 1e25])
def test_norms_do_not_overflow_or_underflow(size):
    params, olds = [torch.full((2, 600), size)], [torch.zeros(2, 600)]
    tables = HostUpdates([Units(0, 2, 600)], params, 1)
    assert tables.take_update(params, [olds])
    found = tables.measure(np.zeros((1, 4)), False)
    torch.testing.assert_close(found, torch.full((2,), size * 600**0.5, dtype=torch.float64))


def test_infinite_movement_is_taken_back_to_the_bits_before():
    params, olds = [torch.tensor([[torch.inf, torch.nan], [3.0, 4.0]])], [torch.ones(2, 2)]
    tables = HostUpdates([Units(0, 2, 2)], params, 1)
    assert tables.take_update(params, [olds])
    assert not tables.measure(np.zeros((1, 4)), False)[0].isfinite()
    tables.shorten(np.zeros((1, 4)), False, torch.tensor([0.0, 1.0]))
    assert params[0].tolist() == [[1.0, 1.0], [3.0, 4.0]]


def test_threads_give_the_same_bits():
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(run(OPTIMIZERS['AdamW'], width=160)[0])
    finally:
        torch.set_num_threads(threads)
    assert equal(*found)


def test_parts_are_not_made_where_a_kernel_measures():
    """They would hold scratch memory for nothing."""
    with mock.patch.object(UpdateParts, '__init__', side_effect=AssertionError):
        run(OPTIMIZERS['AdamW'])
