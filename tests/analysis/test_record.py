"""Recording of unclipped steps: lowered rates, accumulation, hooks and errors."""

from __future__ import annotations

import itertools

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, MODELS

from gclip_mm.analysis.record import AdviceError, record_gradients


def toy(toy_config, lr=0.02, **optim_wrapper) -> Config:
    cfg = Config.fromfile(toy_config)
    cfg.optim_wrapper = dict(
        type='OptimWrapper', optimizer=dict(type='SGD', lr=lr, momentum=0.9), **optim_wrapper
    )
    return cfg


def test_steps_are_recorded_without_clipping(toy_config):
    cfg = toy(toy_config, clip_grad=dict(max_norm=1e-9))
    before = cfg.pretty_text
    seen = []
    recording = record_gradients(cfg, 12, progress=seen.append)
    assert cfg.pretty_text == before, 'the config is not changed'
    stats = recording.stats
    assert stats.grad.shape == (12, 4) and recording.failed == [] and recording.lr == 0.02
    # With a clip of 1e-9 nothing would have been learned.
    assert stats.loss[-3:].mean() < 0.8 * stats.loss[:3].mean()
    assert stats.lr[0] < stats.lr[-1] == pytest.approx(0.02)
    assert 'step 12/12' in seen[-1]


def test_recording_lowers_a_rate_that_blows_up(toy_config):
    said = []
    recording = record_gradients(toy(toy_config, lr=20.0), 30, progress=said.append)
    rates = [rate for rate, _ in recording.failed] + [recording.lr]
    assert len(rates) > 1 and rates[0] == 20.0
    assert all(later == earlier / 4 for earlier, later in itertools.pairwise(rates))
    assert all('loss rose' in why or 'not finite' in why for _, why in recording.failed)
    assert any('trying 5' in text for text in said)
    assert recording.stats.norm.max() < 1e4, 'nothing of the failed runs is left'


def test_accumulated_batches_make_one_step(toy_config):
    cfg = toy(toy_config, accumulative_counts=3)
    assert len(record_gradients(cfg, 10).stats.norm) == 10


def test_recording_keeps_only_hooks_that_prepare_a_run(toy_config):
    ran = []

    class Prepares(Hook):
        def before_run(self, runner):
            ran.append('prepares')

    class Meddles(Prepares):
        def after_train_iter(self, *args, **kwargs):
            ran.append('meddles')

    cfg = toy(toy_config)
    cfg.custom_hooks = [dict(type='Prepares'), dict(type='Meddles'), dict(type='EMAHook')]
    try:
        for hook in (Prepares, Meddles):
            HOOKS.register_module(module=hook)
        record_gradients(cfg, 10)
    finally:
        for name in ('Prepares', 'Meddles'):
            HOOKS.module_dict.pop(name, None)
    assert ran == ['prepares']


def test_never_finite_gradient_is_an_error(toy_config, monkeypatch):
    # Whose import registers the model.
    cfg = toy(toy_config)
    kind = MODELS.get('ToyRegressor')
    forward = kind.forward

    def broken(self, inputs, target, sample_idx=None, mode='tensor'):
        out = forward(self, inputs, target, sample_idx, mode)
        return {'loss': out['loss'] * torch.tensor(float('nan'))} if mode == 'loss' else out

    monkeypatch.setattr(kind, 'forward', broken)
    with pytest.raises(AdviceError, match='no learning rate will mend'):
        record_gradients(cfg, 10)


def test_failure_at_every_rate_is_an_error(toy_config):
    with pytest.raises(AdviceError, match='at every rate that was tried: 1e'):
        record_gradients(toy(toy_config, lr=1e9), 30, attempts=2)
