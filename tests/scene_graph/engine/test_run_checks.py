"""Checks before and during a run: random frozen detectors, flips, NaN, crowded images."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
from mmcv.transforms import Compose, RandomChoice
from mmdet.datasets.transforms import RandomFlip
from torch import nn

import gclip_mm  # noqa: F401
from gclip_mm.scene_graph.engine import SceneGraphCheckHook
from gclip_mm.scene_graph.engine.run_checks import (
    check_detector_loaded,
    check_finite,
    check_flips,
    check_max_objects,
)
from gclip_mm.scene_graph.models.protocol import SceneGraphProtocol
from gclip_mm.scene_graph.models.weights import check_weights
from gclip_mm.scene_graph.transforms.flips import PredicateFlips


class Log:
    def __init__(self):
        self.messages = []

    def warning(self, message):
        self.messages.append(message)


def model_of(freeze=True, init_cfg=None, part_init_cfg=None, protocol='sgdet'):
    part = nn.Sequential(nn.Linear(2, 2))
    part[0].init_cfg = part_init_cfg
    model = nn.Sequential(part)
    model.freeze_detector, model.init_cfg, model.detector_parts = freeze, init_cfg, [part]
    model.protocol = SceneGraphProtocol.parse(protocol)
    model.relations = SimpleNamespace(object_limit=('model.test_cfg.relation.max_objects', 3))
    return model


def test_a_frozen_detector_without_a_checkpoint_is_refused():
    log = Log()
    with pytest.raises(ValueError, match='no checkpoint was loaded.*set load_from'):
        check_detector_loaded(model_of(), log)
    pretrained = dict(type='Pretrained', checkpoint='x.pth')
    check_detector_loaded(model_of(freeze=False), log)
    check_detector_loaded(model_of(init_cfg=pretrained), log)
    assert not log.messages
    check_detector_loaded(model_of(part_init_cfg=[dict(type='Xavier'), pretrained]), log)
    (message,) = log.messages
    assert 'only Linear has pretrained weights' in message and 'set load_from' in message


def test_the_hook_checks_it_unless_a_checkpoint_was_loaded():
    runner = SimpleNamespace(model=model_of(), logger=Log(), _train_loop=None)
    hook = SceneGraphCheckHook()
    with pytest.raises(ValueError, match='no checkpoint was loaded'):
        hook.before_train(runner)
    hook._loaded = True
    hook.before_train(runner)


@pytest.mark.parametrize('hook', ['before_val_epoch', 'before_test_epoch'])
@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_a_model_with_nan_is_not_evaluated(hook, value):
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    check_finite(model)
    model[1].running_mean[0] = value
    with pytest.raises(ValueError, match=r'1 of 7 weights .* the first is 1\.running_mean'):
        getattr(SceneGraphCheckHook(), hook)(SimpleNamespace(model=model))


def test_a_checkpoint_with_nan_is_refused():
    model = nn.Linear(2, 2)
    state = copy.deepcopy(model.state_dict())
    check_weights(model, dict(state_dict=state))
    state['weight'][0, 0] = float('nan')
    with pytest.raises(ValueError, match='1 weights of the checkpoint hold NaN.*first is weight'):
        check_weights(model, dict(state_dict=state))


def data_set(pipeline, predicates=('left of', 'above', 'on'), **meta):
    flips = PredicateFlips.from_metainfo(dict(predicates=predicates, **meta))
    return SimpleNamespace(pipeline=Compose(pipeline), _predicate_flips=flips)


FLIP = RandomFlip(prob=0.5)


@pytest.mark.parametrize(
    'dataset',
    [
        data_set([FLIP]),
        data_set([RandomChoice([[FLIP], [RandomFlip(prob=0.0)]])]),
        SimpleNamespace(datasets=[data_set([]), data_set([FLIP])]),
        SimpleNamespace(dataset=data_set([]), pipeline=Compose([FLIP])),
        data_set([RandomFlip(prob=[0.0, 0.3], direction=['horizontal', 'vertical'])]),
    ],
    ids=['pipeline', 'nested', 'one of two', 'of the wrapper', 'vertical'],
)
def test_a_flip_that_would_invalidate_predicates_is_found_before_training(dataset):
    with pytest.raises(ValueError, match=r'pipeline of the train set flips.*flip_predicate_pairs='):
        check_flips(dataset, 'train')


def test_flips_that_are_described_or_never_happen_pass():
    check_flips(data_set([FLIP], flip_predicate_pairs=[]), 'train')
    check_flips(data_set([FLIP], predicates=('on', 'in')), 'train')
    check_flips(data_set([RandomFlip(prob=0.0)]), 'train')
    check_flips(
        data_set([RandomFlip(prob=[0.3, 0.0], direction=['horizontal', 'vertical'])], ('above',)),
        'train',
    )
    check_flips(SimpleNamespace(pipeline=Compose([FLIP])), 'train')  # no scene graphs


class Images:
    def __init__(self, *counts):
        self.counts = counts

    def __len__(self):
        return len(self.counts)

    def get_data_info(self, i):
        return dict(instances=[dict(ignore_flag=0)] * self.counts[i] + [dict(ignore_flag=1)] * 9)


def test_images_with_more_objects_than_sgdet_predicts_are_reported():
    log = Log()
    check_max_objects(model_of(), Images(1, 3), 'val', log)
    check_max_objects(model_of(protocol='predcls'), Images(9), 'val', log)
    assert not log.messages
    check_max_objects(model_of(), Images(1, 4, 7), 'val', log)
    (message,) = log.messages
    assert message.startswith('2 of 3 checked images of the val set have more than')
    assert 'max_objects=3 objects (up to 7)' in message
    model = model_of()
    model.relations.object_limit = ('model.test_cfg.relation.max_objects', None)
    check_max_objects(model, Images(99), 'val', log)
    assert len(log.messages) == 1
