"""FrequencyBiasHook counts the training set before training runs only."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.dataset import ConcatDataset, RepeatDataset
from mmengine.logging import MMLogger
from mmengine.runner import BaseLoop
from torch import nn

import gclip_mm  # noqa: F401
from gclip_mm.scene_graph.datasets import SceneGraphDataset
from gclip_mm.scene_graph.datasets.fingerprint import fingerprint_of
from gclip_mm.scene_graph.engine import FrequencyBiasHook
from gclip_mm.scene_graph.engine.frequency_bias_hook import count_relations
from gclip_mm.scene_graph.models import FrequencyBias
from gclip_mm.scene_graph.models.heads.frequency_bias import (
    load_counts,
    load_fingerprint,
    save_counts,
)


@pytest.fixture
def dataset(tmp_path):
    """Image 0: a cat (0) left of a dog (1), another dog. Image 1: one cat."""
    content = dict(
        images=[dict(id=i, file_name=f'{i}.jpg', width=100, height=100) for i in range(2)],
        annotations=[
            dict(id=i, image_id=image, category_id=c, bbox=[x, 0, 10, 10], area=100, iscrowd=0)
            for i, (image, c, x) in enumerate([(0, 1, 0), (0, 2, 5), (0, 2, 50), (1, 1, 0)])
        ],
        categories=[dict(id=1, name='cat'), dict(id=2, name='dog')],
        predicates=[dict(id=0, name='left of'), dict(id=1, name='chases')],
        relations=[dict(image_id=0, subject_id=0, object_id=1, predicate_id=0)],
    )
    (tmp_path / 'ann.json').write_text(json.dumps(content))
    return SceneGraphDataset(
        ann_file=str(tmp_path / 'ann.json'), data_prefix=dict(img=''), pipeline=[]
    )


def runner_for(dataset, model, loop=None):
    loop = object.__new__(type('Loop', (BaseLoop,), dict(run=None))) if loop is None else loop
    return SimpleNamespace(
        _train_loop=loop,
        model=model,
        train_dataloader=SimpleNamespace(dataset=dataset),
        logger=MMLogger.get_instance('frequency_bias_test'),
    )


def test_count_relations_counts_pairs(dataset):
    relations, unrelated = count_relations(dataset, only_overlapping=False)
    assert relations.sum() == 1 and relations[0, 1, 0] == 1
    assert unrelated.tolist() == [[0, 1], [2, 2]]
    _, overlapping = count_relations(dataset, only_overlapping=True)
    assert overlapping.tolist() == [[0, 0], [1, 0]]


def test_wrapped_data_sets_are_counted(dataset):
    relations, unrelated = count_relations(dataset, False)
    both = count_relations(ConcatDataset([dataset, dataset]), False)
    np.testing.assert_array_equal(both[0], 2 * relations)
    np.testing.assert_array_equal(both[1], 2 * unrelated)
    repeated = count_relations(RepeatDataset(dataset, 3), False)
    np.testing.assert_array_equal(repeated[0], relations)  # repetition does not change frequencies


def test_training_run_sets_counts(dataset):
    model = nn.Sequential(FrequencyBias(2, 2))
    FrequencyBiasHook().before_run(runner_for(dataset, model))
    logit = model[0](torch.tensor([0, 1]), torch.tensor([[0, 1]]))[0, 0]
    assert logit.item() == pytest.approx(np.log(1 / 2 + 1e-3))  # one of two cat-dog pairs


def test_test_run_sets_no_counts(dataset):
    model = nn.Sequential(FrequencyBias(2, 2))
    FrequencyBiasHook().before_run(runner_for(dataset, model, loop={'type': 'IterBasedTrainLoop'}))
    assert not model[0].ready


def test_counts_are_cached_in_file(dataset, tmp_path):
    file = tmp_path / 'counts.npz'
    FrequencyBiasHook(file=str(file)).before_run(
        runner_for(dataset, nn.Sequential(FrequencyBias(2, 2)))
    )
    assert file.is_file()
    model = nn.Sequential(FrequencyBias(2, 2))
    before = file.stat().st_mtime_ns
    FrequencyBiasHook(file=str(file)).before_run(runner_for(dataset, model))
    assert model[0].ready and file.stat().st_mtime_ns == before


def change(dataset, tmp_path, edit):
    """The same data set after ``edit`` has changed its annotation file."""
    content = json.loads((tmp_path / 'ann.json').read_text())
    edit(content)
    (tmp_path / 'other.json').write_text(json.dumps(content))
    return SceneGraphDataset(
        ann_file=str(tmp_path / 'other.json'), data_prefix=dict(img=''), pipeline=[]
    )


@pytest.mark.parametrize(
    'edit',
    [
        lambda content: content['relations'].append(
            dict(image_id=0, subject_id=1, object_id=2, predicate_id=1)
        ),
        lambda content: content['predicates'].reverse(),
        lambda content: content['categories'][0].update(name='horse'),
        lambda content: content['annotations'][0].update(bbox=[0, 0, 90, 90]),
    ],
    ids=['relations', 'order', 'names', 'boxes'],
)
def test_counts_of_another_training_set_are_refused(dataset, tmp_path, edit):
    file = tmp_path / 'counts.npz'

    def run(data, **options):
        model = nn.Sequential(FrequencyBias(2, 2))
        FrequencyBiasHook(file=str(file), **options).before_run(runner_for(data, model))

    run(dataset)
    # A copy elsewhere is the same training set.
    run(change(dataset, tmp_path, lambda content: None))
    other = change(dataset, tmp_path, edit)
    for data, options in ((other, {}), (dataset, dict(only_overlapping=True))):
        with pytest.raises(
            ValueError, match=r'counts\.npz holds the counts of another training set'
        ):
            run(data, **options)


def test_a_file_without_a_fingerprint_is_counted_again(dataset, tmp_path):
    file = tmp_path / 'counts.npz'
    save_counts(file, np.ones((2, 2, 2), np.int64), np.ones((2, 2), np.int64))
    model = nn.Sequential(FrequencyBias(2, 2))
    FrequencyBiasHook(file=str(file)).before_run(runner_for(dataset, model))
    assert load_counts(file)[0].sum() == 1
    assert load_fingerprint(file) == fingerprint_of(dataset, only_overlapping=False)


class Plain:
    """A data set that has no file."""

    def __len__(self):
        return len(self.samples)

    def get_data_info(self, i):
        return self.samples[i]


def test_data_sets_without_a_local_file_are_compared_by_content(dataset, tmp_path):
    def without_file(data):
        samples = [data.get_data_info(i) for i in range(len(data))]
        plain = Plain()
        plain.metainfo, plain.samples = data.metainfo, samples
        return plain

    same = fingerprint_of(without_file(dataset))
    assert same == fingerprint_of(without_file(change(dataset, tmp_path, lambda content: None)))
    moved = change(dataset, tmp_path, lambda c: c['annotations'][0].update(bbox=[0, 0, 90, 90]))
    assert same != fingerprint_of(without_file(moved))


def test_missing_bias_or_predicates_raise(dataset):
    with pytest.raises(ValueError, match='the model has no FrequencyBias'):
        FrequencyBiasHook().before_run(runner_for(dataset, nn.Linear(1, 1)))
    plain = SimpleNamespace(metainfo=dict(classes=('a',)))
    with pytest.raises(ValueError, match='SimpleNamespace has no relations'):
        count_relations(plain, False)
