"""Gradient accumulation, compared with stock MMEngine and with a larger batch."""

import math

import pytest
import torch
from mmengine.logging import MessageHub
from torch import nn

from gclip_mm import GClipOptimWrapper
from tests.clipping.cases import equal
from tests.engine.door_task import DOORS, history, run_door, weights

SGD = dict(type='SGD', lr=0.02, momentum=0.9)


@pytest.mark.parametrize('door', DOORS)
@pytest.mark.parametrize('counts', [2, 5])
@pytest.mark.parametrize('rule', [dict(max_norm=0.5), dict(type='value', clip_value=0.05)])
def test_accumulation_is_bit_identical_to_stock(rule, counts, door, tmp_path):
    """Twelve iterations with 5 per step: the last step has the remaining two."""
    changes = dict(wrapper=dict(accumulative_counts=counts))
    stock = run_door('stock', tmp_path / 'stock', rule, SGD, **changes)
    ours = run_door(door, tmp_path / 'ours', rule, SGD, **changes)
    assert equal(weights(ours), weights(stock))
    if 'max_norm' in rule and door != 'attach':
        norms = history(ours, 'train/grad_norm')
        assert norms == history(stock, 'train/grad_norm')
        assert len(norms) == math.ceil(12 / counts)


@pytest.mark.parametrize('fused', [False, True])
@pytest.mark.parametrize('rule', ['NormClip', 'AGC', 'ValueClip'])
def test_accumulation_equals_a_larger_batch(rule, fused, request):
    clip_grad = {
        'NormClip': dict(type='NormClip', max_norm=0.3),
        'AGC': dict(type='AGC', clip_factor=0.02),
        'ValueClip': dict(type='ValueClip', clip_value=0.03),
    }[rule]

    def train(counts):
        hub = MessageHub.get_instance(f'{request.node.nodeid} {counts}')
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=fused)
        wrapper = GClipOptimWrapper(optimizer, accumulative_counts=counts, clip_grad=clip_grad)
        wrapper.initialize_count_status(model, 0, 5 * counts)
        for step in range(5):
            x = torch.randn(12, 4, generator=torch.Generator().manual_seed(step))
            for part in x.chunk(counts):
                with wrapper.optim_context(model):
                    loss = (model(part) - 3).square().mean()
                wrapper.update_params(loss)
        return [p.detach() for p in model.parameters()], hub.get_scalar('train/clip_coef').data[0]

    one, coefs = train(1)
    four, coefs_of_four = train(4)
    for a, b in zip(one, four, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert coefs_of_four.tolist() == pytest.approx(coefs.tolist(), rel=1e-4) and min(coefs) < 1


@pytest.mark.parametrize('fused', [False, True])
def test_nonfinite_part_affects_only_its_step(fused, request):
    MessageHub.get_instance(request.node.nodeid)
    p = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([p], lr=0.1, fused=fused)
    wrapper = GClipOptimWrapper(optimizer, accumulative_counts=3, clip_grad=dict(max_norm=1.0))
    for part in range(9):
        wrapper.update_params((p * (math.nan if part == 4 else 3.0)).sum())
    # Steps one and three: (-1, -1) / sqrt(2) * 0.1 each.
    assert p.tolist() == pytest.approx([1 - 0.2 / math.sqrt(2)] * 2, rel=1e-5)
    assert wrapper.engine.steps == 3
