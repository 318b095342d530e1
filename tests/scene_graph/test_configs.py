"""Every config of configs/scene_graph builds, and its parts are consistent."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import yaml
from mmdet.registry import DATASETS, HOOKS, METRICS, MODELS, VISUALIZERS
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.registry import init_default_scope as set_scope

import gclip_mm
from gclip_mm.clipping.config.parse import parse_clip_grad
from gclip_mm.clipping.gradients.names import describe_params

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / 'configs' / 'scene_graph'
CONFIGS = sorted(p for p in FOLDER.glob('*/*.py') if p.parent.name not in ('_base_', 'clip'))
RECIPES = sorted((FOLDER / 'clip').glob('*.py'))
CONTEXTS = ('identity', 'rnn', 'crnn', 'transformer', 'imp')
PROTOCOLS = ('predcls', 'sgcls', 'sgdet')


@pytest.fixture(scope='module', autouse=True)
def mmdet_scope():
    known = list(DefaultScope._instance_dict.items())
    set_scope('mmdet')
    yield
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(known)


def names(folder: str) -> list[str]:
    return [path.name for path in CONFIGS if path.parent.name == folder]


def build(cfg: Config) -> torch.nn.Module:
    with torch.device('meta'):  # shapes only, without memory
        return MODELS.build(copy.deepcopy(cfg.model))


def test_every_context_and_protocol_has_a_config():
    for data, middle in (('shapescenes', ''), ('vg150', 'r50_fpn_'), ('psg', 'r50_fpn_')):
        wanted = {f'{c}_{p}_{middle}{data}.py' for c in CONTEXTS for p in PROTOCOLS}
        assert wanted <= set(names(data))


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_config_builds_with_consistent_parts(path):
    cfg = Config.fromfile(str(path))
    model = build(cfg)
    for kind, part in ((METRICS, cfg.val_evaluator), (VISUALIZERS, cfg.visualizer)):
        assert kind.get(part.type) is not None
    assert DATASETS.get(cfg.train_dataloader.dataset.type) is not None
    if cfg.model.type not in ('SceneGraphRCNN', 'SceneGraphDetector'):
        return
    protocol = path.stem.split('_')[1]
    assert model.protocol.value == protocol
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        assert evaluator.protocol == protocol
    assert any(HOOKS.get(hook.type).__name__ == 'FrequencyBiasHook' for hook in cfg.custom_hooks)
    # Weight decay would pull log-frequencies to zero, a uniform distribution.
    assert cfg.optim_wrapper.paramwise_cfg.custom_keys['frequency_bias'].decay_mult == 0
    context = path.stem.split('_')[0]
    for pipeline in (cfg.train_pipeline, cfg.test_pipeline):
        types = [step.type for step in pipeline]
        assert types.index('LoadSceneGraphAnnotations') == 1
        assert types[-1] == 'PackSceneGraphInputs'
    if context == 'egtr':
        assert type(model.relation_head).__name__ == 'EGTRHead'
        return
    built = type(model.relation_head.context).__name__.lower()
    assert built == ('nonetype' if context == 'frequency' else f'{context}context')


@pytest.mark.parametrize('detector', ['retinanet', 'yolox', 'dino', 'mask2former'])
def test_other_detectors_have_configs(detector):
    wanted = {f'{c}_sgdet_{detector}_shapescenes.py' for c in ('rnn', 'transformer')}
    assert wanted <= set(names('shapescenes'))
    for name in wanted:
        cfg = Config.fromfile(str(FOLDER / 'shapescenes' / name))
        model = build(cfg)
        assert type(model.detector).__name__.lower() == detector
        assert model.adapter.class_count[1] == model.relation_head.num_classes == 10


def test_head_on_queries_has_a_config():
    model = build(Config.fromfile(str(FOLDER / 'shapescenes' / 'egtr_sgdet_dino_shapescenes.py')))
    head, decoder = model.relation_head, model.detector.decoder
    assert len(head.proj_q) == len(decoder.layers)
    assert head.num_classes == model.adapter.class_count[1] == 10


@pytest.mark.parametrize('recipe', RECIPES, ids=lambda path: path.stem)
@pytest.mark.parametrize(
    'name',
    [
        'shapescenes/rnn_sgdet_shapescenes',
        'shapescenes/rnn_sgdet_dino',
        'shapescenes/transformer_sgdet_retinanet',
        'vg150/imp_predcls',
        'psg/crnn_sgcls',
    ],
)
def test_clip_recipes_match_every_model(recipe, name):
    path = next(p for p in CONFIGS if str(p.relative_to(FOLDER)).startswith(name))
    cfg = gclip_mm.apply_clip(Config.fromfile(str(path)), str(recipe))
    clip = parse_clip_grad(cfg.optim_wrapper.clip_grad)
    model = build(cfg)
    infos = describe_params(model.parameters(), model)
    assigned = clip.router.assign(infos)  # raises if a route matches no parameter
    rules = {
        info.name: type(clip.router.routes[i].clipper).__name__
        for info, i in zip(infos, assigned, strict=True)
    }
    bias = rules['relation_head.frequency_bias.weight']
    assert bias != 'AGC'  # the norm of log-frequencies is not a measure for the step size
    budgets = {
        assigned[i]
        for i, info in enumerate(infos)
        if info.name
        in (
            'backbone.conv1.weight',
            'detector.backbone.conv1.weight',
            'relation_head.union_fc.0.weight',
            next(n for n in rules if n.startswith('relation_head.context.')),
        )
    }
    assert len(budgets) == dict(value_routes=2, log_norm=1).get(recipe.stem, 3)


def test_log_norm_clips_nothing():
    cfg = Config.fromfile(str(FOLDER / 'shapescenes/rnn_sgdet_shapescenes.py'))
    cfg = gclip_mm.apply_clip(cfg, str(FOLDER / 'clip/log_norm.py'))
    assert cfg.optim_wrapper.clip_grad == dict(type='NormClip', max_norm=float('inf'))


@pytest.mark.parametrize('protocol', ['sgcls', 'sgdet'])
@pytest.mark.parametrize('context', CONTEXTS)
def test_joint_training_has_a_higher_limit_than_predcls(context, protocol):
    """The losses of the detector add to the norm."""
    limits = [
        Config.fromfile(str(FOLDER / f'shapescenes/{context}_{name}_shapescenes.py'))
        for name in ('predcls', protocol)
    ]
    low, high = (cfg.optim_wrapper.clip_grad.max_norm for cfg in limits)
    assert low < high


def test_metafile_lists_every_config():
    content = yaml.safe_load((FOLDER / 'metafile.yml').read_text())
    listed = {model['Config'] for model in content['Models']}
    assert listed == {str(path.relative_to(ROOT)) for path in CONFIGS}
    known = {collection['Name'] for collection in content['Collections']}
    assert {model['In Collection'] for model in content['Models']} <= known
