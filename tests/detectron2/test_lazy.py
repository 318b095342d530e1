"""``lazy``: a clipped optimizer in a LazyConfig."""

from __future__ import annotations

import pytest
import torch
import yaml
from detectron2.config import LazyCall, LazyConfig, instantiate
from detectron2.engine import SimpleTrainer
from detectron2.solver import get_default_optimizer_params

from gclip_mm.clipping import ClipConfigError, GradClipEngine
from gclip_mm.detectron2 import clip, lazy
from tests.detectron2.source import SOURCE
from tests.detectron2.toy import batches, make_model, same, weights

CONFIG = """
import torch
from detectron2.config import LazyCall
from detectron2.solver import get_default_optimizer_params

from gclip_mm.detectron2 import lazy

optimizer = LazyCall(torch.optim.AdamW)(
    params=LazyCall(get_default_optimizer_params)(weight_decay_norm=0.0),
    lr=0.1,
    betas=[0.9, 0.99],
)
optimizer = lazy(optimizer, type='AGC', clip_factor=0.01, exclude=['cls_score'])
"""


@pytest.fixture
def cfg(tmp_path):
    (tmp_path / 'config.py').write_text(CONFIG)
    return LazyConfig.load(str(tmp_path / 'config.py'))


def build(cfg, model):
    # As tools/lazyconfig_train_net.py of Detectron2 does.
    cfg.optimizer.params.model = model
    return instantiate(cfg.optimizer)


def test_optimizer_is_built_and_clipped(cfg):
    model, twin = make_model(), make_model()
    ours = build(cfg, model)
    groups = get_default_optimizer_params(twin, weight_decay_norm=0.0)
    theirs = torch.optim.AdamW(groups, lr=0.1, betas=(0.9, 0.99))
    rule = dict(type='AGC', clip_factor=0.01, exclude=['cls_score'])
    clip(theirs, rule, twin)
    assert type(ours) is torch.optim.AdamW and GradClipEngine.on(ours).config.raw == rule
    for each, optimizer in ((model, ours), (twin, theirs)):
        SimpleTrainer(each, batches(5), optimizer).train(0, 5)
    assert same(weights(model), weights(twin))
    assert [g['weight_decay'] for g in ours.param_groups] == [
        g['weight_decay'] for g in theirs.param_groups
    ]


def test_command_line_changes_the_rule_and_the_optimizer(cfg):
    LazyConfig.apply_overrides(cfg, ['optimizer.clip_grad.clip_factor=0.5', 'optimizer.lr=0.3'])
    optimizer = build(cfg, make_model())
    assert GradClipEngine.on(optimizer).config.raw['clip_factor'] == 0.5
    assert optimizer.param_groups[0]['lr'] == 0.3


def test_saved_config_is_yaml_of_plain_values_and_builds(cfg, tmp_path):
    path = tmp_path / 'config.yaml'
    LazyConfig.save(cfg, str(path))
    saved = yaml.safe_load(path.read_text())
    assert saved['optimizer']['clip_grad'] == dict(
        type='AGC', clip_factor=0.01, exclude=['cls_score']
    )
    assert not (tmp_path / 'config.yaml.pkl').exists()
    saved['optimizer']['params']['model'] = make_model()
    assert GradClipEngine.on(instantiate(saved['optimizer'])) is not None


@pytest.mark.skipif(SOURCE is None, reason='the stand-in has no to_py')
def test_config_is_shown_as_python(cfg):
    text = LazyConfig.to_py(cfg)
    assert 'gclip_mm.detectron2' in text and 'clip_factor' in text


def test_given_config_is_not_changed():
    optimizer = LazyCall(torch.optim.SGD)(params=LazyCall(get_default_optimizer_params)(), lr=0.1)
    lazy(optimizer, type='Auto')
    assert 'clip_grad' not in optimizer and optimizer['_target_'] is torch.optim.SGD


@pytest.mark.parametrize(
    'optimizer',
    [
        torch.optim.SGD,
        LazyCall(torch.optim.SGD)(lr=0.1),
        LazyCall(torch.optim.SGD)(lr=0.1, params=[]),
        dict(lr=0.1),
    ],
    ids=['class', 'no params', 'list', 'no call'],
)
def test_other_optimizers_are_refused(optimizer):
    with pytest.raises(ClipConfigError, match='LazyCall of an optimizer whose params'):
        lazy(optimizer, type='Auto')


def test_a_rule_is_needed(cfg):
    with pytest.raises(ClipConfigError, match='the rule must be'):
        lazy(LazyCall(torch.optim.SGD)(params=LazyCall(get_default_optimizer_params)(), lr=0.1))
