"""The ratios and the warm-up of the benchmark."""

import statistics

import pytest
import torch

from gclip_mm.analysis.benchmark.gradients import many_tensors, random_gradients
from gclip_mm.analysis.benchmark.peers import PEERS
from gclip_mm.analysis.benchmark.table import clip_alone_seconds, rule_step, targets


def test_ratios_are_medians_round_by_round():
    times = {
        'NormClip': [3.0, 6.0, 4.0],
        'torch clip_grad_norm_': [4.0, 4.0, 8.0],
        'step only (fused SGD)': [2.0, 2.0, 3.0],
    }
    (found,) = targets(times)
    expected = statistics.median([3 / 4, 6 / 4, 4 / 8])
    assert found == dict(
        what='NormClip',
        over='torch clip_grad_norm_',
        of='clip+step',
        at_most=0.85,
        measured=expected,
    )
    assert clip_alone_seconds(times, 'NormClip') == 1.0


def test_warmed_up_rules_clip_and_leave_gradients_unchanged():
    for name in ('AutoClip', 'ZClip', 'AdaGC', 'AdaClip'):
        model = many_tensors(3, 200)
        params = list(model.parameters())
        random_gradients(params)
        before = [p.grad.clone() for p in params]
        step, handle = rule_step(name, params, model)
        assert all(torch.equal(p.grad, grad) for p, grad in zip(params, before, strict=True))
        step()
        stats = handle.stats()
        assert stats['clip_coef'] < 0.999, name
        assert stats['grad_norm'] == pytest.approx(
            float(torch.cat(before).double().norm()), rel=1e-6
        )


def test_row_of_buffers_steps_and_leaves_buffers_unchanged():
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    params = list(model.parameters())
    random_gradients(params)
    step = PEERS['buffers'](params, model)
    before = [buffer.clone() for buffer in model.buffers()]
    with torch.profiler.profile() as profile:
        step()
    assert all(map(torch.equal, model.buffers(), before))
    names = {event.key for event in profile.key_averages()}
    assert 'aten::_foreach_copy_' in names and 'aten::_fused_sgd_' in names
