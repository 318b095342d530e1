"""The route table agrees with what the engine does."""

from __future__ import annotations

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS

from gclip_mm.analysis.routes import route_table
from gclip_mm.clipping import ClipConfigError
from gclip_mm.clipping.step.engine import GradClipEngine


def toy(toy_config, **optim_wrapper) -> Config:
    cfg = Config.fromfile(toy_config)
    for key, value in optim_wrapper.items():
        # Taken out first: a ConfigDict merges what is assigned to it.
        cfg.optim_wrapper.pop(key, None)
        cfg.optim_wrapper[key] = value
    return cfg


def test_rows_agree_with_what_training_does(toy_config):
    clip_grad = dict(
        type='NormClip',
        max_norm=1e-3,
        exclude=[r'net\.2\.bias'],
        rules=[dict(match=r'net\.0', type='ValueClip', clip_value=1e-6)],
    )
    rows = route_table(toy(toy_config, clip_grad=clip_grad))
    by_name = {row.name: row for row in rows}
    assert list(by_name) == ['net.0.weight', 'net.0.bias', 'net.2.weight', 'net.2.bias']

    model = MODELS.build(dict(type='ToyRegressor'))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    GradClipEngine(optimizer, clip_grad, model=model)
    for param in model.parameters():
        param.grad = torch.full_like(param, 5.0)
    optimizer.step()
    for name, param in model.named_parameters():
        row, largest = by_name[name], param.grad.abs().max()
        if row.rule == 'exempt':
            assert largest == 5.0
        elif row.rule == 'ValueClip':
            assert largest == pytest.approx(1e-6)
        else:
            assert row.rule == 'NormClip' and param.grad.norm() <= 1.001e-3
    assert by_name['net.0.weight'].threshold == 'clip_value=1e-06'
    assert by_name['net.0.weight'].units == 8 and by_name['net.0.bias'].units == 1
    assert by_name['net.2.bias'].route == r"exclude[0] 'net\\.2\\.bias'"


def test_frozen_parameter_has_no_rule(toy_config, monkeypatch):
    kind = MODELS.get('ToyRegressor')
    init = kind.__init__

    def freeze(self):
        init(self)
        self.net[0].requires_grad_(False)

    monkeypatch.setattr(kind, '__init__', freeze)
    rules = [row.rule for row in route_table(toy(toy_config))]
    assert rules == ['frozen', 'frozen', 'NormClip', 'NormClip']


@pytest.mark.parametrize(
    ('wrapper', 'hooks', 'rule', 'threshold'),
    [
        (dict(type='OptimWrapper', clip_grad=dict(max_norm=3)), [], 'stock', 'max_norm=3'),
        (dict(type='OptimWrapper', clip_grad=None), [], 'none', ''),
        (
            dict(type='OptimWrapper', clip_grad=None),
            [dict(type='GClipHook', clip_grad=dict(type='AGC', clip_factor=0.02))],
            'AGC',
            'clip_factor=0.02',
        ),
    ],
)
def test_stock_wrapper_and_hook_are_shown(toy_config, wrapper, hooks, rule, threshold):
    cfg = toy(toy_config, **wrapper)
    cfg.custom_hooks = hooks
    rows = route_table(cfg)
    assert {row.rule for row in rows} == {rule}
    assert {row.threshold for row in rows} == {threshold}


def test_hook_and_clipping_wrapper_together_are_an_error(toy_config):
    cfg = toy(toy_config)
    cfg.custom_hooks = [dict(type='GClipHook', clip_grad=dict(max_norm=1))]
    with pytest.raises(ClipConfigError, match='clips already'):
        route_table(cfg)
