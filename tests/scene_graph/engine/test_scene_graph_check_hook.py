"""SceneGraphCheckHook raises before a run and names the config key to change."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.logging import MMLogger
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
    logger = MMLogger.get_instance('scene_graph_check_test')
    loops = dict(_train_loop=train, _val_loop=val, _test_loop=test)
    runner = SimpleNamespace(model=model, logger=logger, **loops)
    SceneGraphCheckHook().before_run(runner)


def test_consistent_config_passes():
    check(train=loop(), val=loop(), test=loop())
    check(train=loop(), scene_head=None)
    # A loop that does not run is a config.
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
def test_wrong_size_raises_with_config_key(which, meta, message):
    with pytest.raises(ValueError, match=message):
        check(**{which: loop(**meta)})


def test_wrapped_detector_is_checked_too():
    cfg = Config.fromfile('configs/scene_graph/shapescenes/rnn_sgdet_yolox_shapescenes.py')
    model = MODELS.build(cfg.model)
    check(model, train=loop('sgdet'), val=loop('sgdet'))
    with pytest.raises(ValueError, match=r'^model.detector.bbox_head.num_classes=10, .* 1 classes'):
        check(model, train=loop('sgdet', classes=('cat',)))
    with pytest.raises(ValueError, match="'sgdet', but .* protocol='predcls'"):
        check(model, val=loop('predcls'))


@pytest.mark.parametrize('which', ['val', 'test'])
def test_metric_with_other_protocol_raises(which):
    with pytest.raises(ValueError, match=r"'sgdet', but .* protocol='predcls'"):
        check(**{which: loop()}, protocol='sgdet')


@pytest.mark.parametrize('protocol', ['sgcls', 'sgdet'])
def test_detector_without_loss_raises_if_protocol_needs_it(protocol):
    with pytest.raises(ValueError, match='set detector_loss=True'):
        check(train=loop(protocol), protocol=protocol)
    check(train=loop(protocol), protocol=protocol, detector_loss=True)
    check(train=loop(protocol), protocol=protocol, freeze_detector=True)
    check(test=loop(protocol), protocol=protocol)


@pytest.mark.parametrize('which', ['val', 'test'])
@pytest.mark.parametrize('kind', ['classes', 'predicates', 'scenes'])
def test_names_in_other_order_raise(which, kind):
    turned = {kind: tuple(reversed(METAINFO[kind]))}
    message = rf'the {which} set has other {kind} than the training set, in another order: \['
    with pytest.raises(ValueError, match=message):
        check(train=loop(), **{which: loop(**turned)})


def test_misspelt_name_raises():
    names = ('persn', *METAINFO['classes'][1:])
    with pytest.raises(ValueError, match=r"other classes than the training set: \['persn'"):
        check(train=loop(), val=loop(classes=names))


@pytest.mark.parametrize('trains', [False, True])
def test_checkpoint_with_other_names_raises_in_test_only(trains):
    names = tuple(reversed(METAINFO['predicates']))
    loops = dict(train=loop() if trains else None, val=None, test=loop())
    model = MODELS.build(Config.fromfile(CONFIG).model)
    runner = SimpleNamespace(model=model, **{f'_{key}_loop': value for key, value in loops.items()})
    hook, weights = SceneGraphCheckHook(), model.state_dict()
    for meta in ({}, dict(dataset_meta=METAINFO), dict(dataset_meta=dict(classes=()))):
        hook.after_load_checkpoint(runner, dict(meta=meta, state_dict=weights))
    other = dict(meta=dict(dataset_meta={**METAINFO, 'predicates': names}), state_dict=weights)
    if trains:
        # Training may start from a detector of another data set.
        hook.after_load_checkpoint(runner, other)
    else:
        with pytest.raises(ValueError, match='than the training set of the checkpoint, in another'):
            hook.after_load_checkpoint(runner, other)


@pytest.mark.parametrize('trains', [False, True])
def test_checkpoint_of_other_model_raises_in_test_only(trains):
    model = MODELS.build(Config.fromfile(CONFIG).model)
    loops = dict(_train_loop=loop() if trains else None, _val_loop=None, _test_loop=loop())
    runner = SimpleNamespace(model=model, **loops)
    weights = {key: value for key, value in model.state_dict().items() if 'backbone' in key}
    with nullcontext() if trains else pytest.raises(ValueError, match='belongs to another model'):
        SceneGraphCheckHook().after_load_checkpoint(runner, dict(state_dict=weights))


class Annotated(list):
    """Stub of a training set with these images."""

    metainfo, ann_file = METAINFO, 'data/mine/train.json'

    def get_data_info(self, i):
        return self[i]


def training_on(*infos):
    made = loop()
    made.dataloader.dataset = Annotated(infos)
    return made


def test_training_set_without_relations_or_scenes_raises():
    some, none = np.zeros((1, 3), np.int64), np.zeros((0, 3), np.int64)
    check(train=training_on(dict(relations=none, scene_label=0), dict(relations=some)))
    check(train=training_on(dict(relations=some, scene_label=None)), scene_head=None)
    with pytest.raises(ValueError, match=r'\(data/mine/train.json\) has no relation .* 2 images$'):
        check(train=training_on(*[dict(relations=none, scene_label=0)] * 2))
    with pytest.raises(ValueError, match='no scene in any .* 1 images: set model.scene_head=None'):
        check(train=training_on(dict(relations=some, scene_label=None)))


def test_missing_picture_raises_with_path(tmp_path):
    there = tmp_path / 'there.png'
    there.touch()
    some = np.zeros((1, 3), np.int64)
    infos = [dict(img_path=str(there), relations=some, scene_label=0) for _ in range(250)]
    check(train=training_on(*infos))
    infos[-1] = {**infos[-1], 'img_path': str(tmp_path / 'last.png')}
    message = (
        r'^1 of 100 checked pictures of the val set \(data/mine/train.json\) '
        r'.* first is .*last.png\. '
    )
    with pytest.raises(FileNotFoundError, match=message):
        check(val=training_on(*infos))
    infos[-1]['img_path'] = 's3://bucket/last.png'
    check(val=training_on(*infos))
    infos[-1]['img_path'] = str(tmp_path / 'last.png')
    remote = training_on(*infos)
    remote.dataloader.dataset.backend_args = dict(backend='petrel')
    check(val=remote)
    # Each part of a wrapper is checked separately.
    inner = remote.dataloader.dataset
    for parts in (dict(dataset=inner), dict(datasets=[inner, inner])):
        wrapped = loop()
        wrapped.dataloader.dataset = SimpleNamespace(
            metainfo=METAINFO, get_data_info=inner.get_data_info, **parts
        )
        check(val=wrapped)
        inner.backend_args = None
        with pytest.raises(FileNotFoundError, match='last.png'):
            check(val=wrapped)
        load = SimpleNamespace(backend_args=dict(backend='petrel'))
        inner.pipeline = SimpleNamespace(transforms=[load])
        check(val=wrapped)
        del inner.pipeline
        inner.backend_args = dict(backend='petrel')


def test_size_error_names_annotation_file():
    made = training_on()
    made.dataloader.dataset.metainfo = {**METAINFO, 'predicates': ('on',)}
    with pytest.raises(ValueError, match=r'the val set \(data/mine/train.json\) has 1 pred'):
        check(val=made)


def test_other_model_type_raises():
    with pytest.raises(ValueError, match='is a Linear'):
        check(model=nn.Linear(1, 1))
