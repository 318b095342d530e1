"""What does not fit is said before a run, by the key that has to change."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import DefaultScope, init_default_scope
from mmengine.runner import BaseLoop
from torch import nn

import gclip_mm  # noqa: F401
from gclip_mm.datasets.shape_scenes.vocabulary import METAINFO
from gclip_mm.scene_graph.engine import SceneGraphCheckHook
from gclip_mm.scene_graph.evaluation.metric import SceneGraphMetric

CONFIG = 'configs/scene_graph/shapescenes/identity_predcls_shapescenes.py'


@pytest.fixture(autouse=True)
def mmdet_scope():
    known = list(DefaultScope._instance_dict.items())
    init_default_scope('mmdet')
    yield
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(known)


def loop(protocol='predcls', **meta):
    made = object.__new__(type('Loop', (BaseLoop,), dict(run=None)))
    made.dataloader = SimpleNamespace(dataset=SimpleNamespace(metainfo={**METAINFO, **meta}))
    made.evaluator = SimpleNamespace(metrics=[SceneGraphMetric(protocol=protocol)])
    return made


def check(model=None, train=None, val=None, test=None, **changes):
    if model is None:
        cfg = Config.fromfile(CONFIG).model
        cfg.update(changes)
        model = MODELS.build(cfg)
    runner = SimpleNamespace(model=model, _train_loop=train, _val_loop=val, _test_loop=test)
    SceneGraphCheckHook().before_run(runner)


def test_what_fits_passes():
    check(train=loop(), val=loop(), test=loop())
    check(train=loop(), scene_head=None)
    # What is not going to run is a config.
    check(val=dict(type='ValLoop'), protocol='sgcls')


@pytest.mark.parametrize('which', ['train', 'val', 'test'])
@pytest.mark.parametrize(
    ('meta', 'message'),
    [
        (dict(predicates=('on', 'by')), r"num_predicates=10, but .* 2 predicates: \['on', 'by'\]"),
        (dict(classes=('cat',)), r'bbox_head.num_classes=10, but .* 1 classes'),
        (dict(scenes=('sea', 'wall')), r'num_scenes=6, but .* 2 scenes'),
        (dict(scenes=()), r'model.scene_head=None'),
    ],
)
def test_sizes(which, meta, message):
    with pytest.raises(ValueError, match=message):
        check(**{which: loop(**meta)})


@pytest.mark.parametrize('which', ['val', 'test'])
def test_a_metric_of_another_protocol(which):
    with pytest.raises(ValueError, match=r"'sgdet', but .* protocol='predcls'"):
        check(**{which: loop()}, protocol='sgdet')


@pytest.mark.parametrize('protocol', ['sgcls', 'sgdet'])
def test_a_detector_that_learns_nothing(protocol):
    with pytest.raises(ValueError, match='set detector_loss=True'):
        check(train=loop(protocol), protocol=protocol)
    check(train=loop(protocol), protocol=protocol, detector_loss=True)
    check(train=loop(protocol), protocol=protocol, freeze_detector=True)
    check(test=loop(protocol), protocol=protocol)


def test_another_model():
    with pytest.raises(ValueError, match='is a Linear'):
        check(model=nn.Linear(1, 1))
