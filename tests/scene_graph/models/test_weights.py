"""check_weights accepts own checkpoints and raises for those of another model."""

from __future__ import annotations

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import DefaultScope, init_default_scope

import gclip_mm  # noqa: F401
from gclip_mm.scene_graph.models.weights import check_weights

CONFIGS = 'configs/scene_graph/shapescenes'


@pytest.fixture(scope='module')
def models():
    known = list(DefaultScope._instance_dict.items())
    init_default_scope('mmdet')
    names = ('identity', 'rnn', 'transformer')
    yield {
        name: MODELS.build(Config.fromfile(f'{CONFIGS}/{name}_predcls_shapescenes.py').model)
        for name in names
    }
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(known)


@pytest.mark.parametrize('prefix', ['', 'module.'])
def test_own_checkpoint_passes(models, prefix):
    model = models['rnn']
    state = {prefix + key: value for key, value in model.state_dict().items()}
    check_weights(model, state)
    check_weights(model, dict(state_dict=state, meta={}))


@pytest.mark.parametrize(
    ('wanted', 'saved', 'message'),
    [
        ('rnn', 'transformer', r'relation_head.context\S* is missing, and \d+ more do not match'),
        ('rnn', 'identity', r'relation_head.context\S* is missing'),
        ('identity', 'rnn', r'relation_head.context\S* is unknown to the model'),
    ],
)
def test_checkpoint_of_other_context_raises(models, wanted, saved, message):
    with pytest.raises(ValueError, match=message):
        check_weights(models[wanted], dict(state_dict=models[saved].state_dict()))


def test_checkpoint_of_other_size_raises(models):
    state = dict(models['rnn'].state_dict())
    key = next(key for key in state if key.startswith('scene_head') and state[key].ndim == 2)
    state[key] = torch.zeros(3, 7)
    message = rf'another model: {key} has the shape \(3, 7\), not \(\d+, \d+\). Use the config'
    with pytest.raises(ValueError, match=message):
        check_weights(models['rnn'], state)


def test_model_may_lack_scene_head_but_checkpoint_may_not(models):
    model, head = models['rnn'], models['rnn'].scene_head
    state = model.state_dict()
    model.scene_head = None
    try:
        check_weights(model, state)
    finally:
        model.scene_head = head
    without = {key: value for key, value in state.items() if not key.startswith('scene_head')}
    with pytest.raises(ValueError, match=r'scene_head\S* is missing'):
        check_weights(model, without)
