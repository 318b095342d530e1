"""Zero-shot lists, groups of predicates, and when their files are read."""

import json

import numpy as np
import pytest
import torch

from gclip_mm.scene_graph.evaluation import SceneGraphMetric, load_triplets, predicate_groups
from gclip_mm.scene_graph.evaluation.predicate_groups import BGNN_BODY, BGNN_HEAD, thirds

CLASSES, PREDICATES = ('dog', 'table', 'cup'), ('on', 'under')


def test_triplets_are_read_from_every_format(tmp_path):
    wanted = {(0, 1, 0), (2, 1, 1)}
    names = [['dog', 'table', 'on'], ['cup', 'table', 'under']]
    (tmp_path / 'names.json').write_text(json.dumps(names))
    (tmp_path / 'labels.json').write_text(json.dumps([list(t) for t in wanted]))
    np.save(tmp_path / 'a.npy', np.array(sorted(wanted)))
    # Scene-Graph-Benchmark counts from 1, because 0 is the background.
    torch.save(torch.tensor(sorted(wanted)) + 1, tmp_path / 'zeroshot_triplet.pytorch')
    for name in ('names.json', 'labels.json', 'a.npy', 'zeroshot_triplet.pytorch'):
        assert load_triplets(tmp_path / name, CLASSES, PREDICATES) == wanted, name


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ([['dog', 'table']], r'triplet 0 must be \[subject, object, predicate\]'),
        ([['dog', 'chair', 'on']], "unknown object 'chair'; valid: .*'table'"),
        ([[0, 1, 2]], r'the predicate must be a name or in \[0, 2\), got 2'),
        ([[0, 1, 0.5]], 'the predicate must be a name'),
        ({}, 'must hold a list'),
    ],
)
def test_bad_triplets_raise_with_their_place(tmp_path, content, message):
    (tmp_path / 'a.json').write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        load_triplets(tmp_path / 'a.json', CLASSES, PREDICATES)


def test_unknown_ending_and_missing_file_raise(tmp_path):
    with pytest.raises(ValueError, match='must end in one of'):
        load_triplets('a.txt')
    with pytest.raises(FileNotFoundError, match=r'a\.json does not exist'):
        load_triplets(tmp_path / 'a.json')


def test_thirds_are_of_equal_size_and_ordered_by_frequency():
    counts = np.array([5, 900, 5, 30, 0, 70, 8])
    groups = thirds(counts)
    assert groups == dict(head=[1, 3, 5], body=[0, 6], tail=[2, 4])
    assert predicate_groups('thirds', 'abcdefg', counts) == groups
    with pytest.raises(ValueError, match='needs three predicates'):
        thirds(np.array([1, 2]))


def test_published_groups_of_vg150_have_4_12_and_34_predicates():
    names = [*BGNN_HEAD, *BGNN_BODY, *(f'rare {i}' for i in range(34))]
    assert len(set(names)) == 50
    groups = predicate_groups('bgnn', names)
    assert {name: len(labels) for name, labels in groups.items()} == dict(head=4, body=12, tail=34)
    with pytest.raises(ValueError, match="names 'has'; the predicates are"):
        predicate_groups('bgnn', PREDICATES)


def test_given_groups_are_looked_up_by_name():
    assert predicate_groups(dict(rare=['under']), PREDICATES) == dict(rare=[1])
    with pytest.raises(ValueError, match=r"predicate_groups\['rare'\] names 'over'"):
        predicate_groups(dict(rare=['over']), PREDICATES)
    with pytest.raises(ValueError, match='is empty'):
        predicate_groups(dict(rare=[]), PREDICATES)


@pytest.mark.parametrize(
    ('key', 'name'), [('train_ann_file', 'train.json'), ('zero_shot_triplets', 'zero.json')]
)
def test_files_are_read_as_soon_as_the_data_set_is_known(tmp_path, key, name):
    """MMEngine sets the metainfo when it builds the validation loop, before the first iteration."""
    metric = SceneGraphMetric(**{key: str(tmp_path / name)})
    with pytest.raises(FileNotFoundError, match=rf'{name}.* does not exist'):
        metric.dataset_meta = dict(classes=CLASSES, predicates=PREDICATES)
    (tmp_path / name).write_text('{')
    with pytest.raises(ValueError, match='is not valid JSON'):
        metric.dataset_meta = dict(classes=CLASSES, predicates=PREDICATES)


def test_files_are_read_without_metainfo_too(tmp_path):
    np.save(tmp_path / 'a.npy', np.array([[0, 1, 0]]))
    metric = SceneGraphMetric(zero_shot_triplets=str(tmp_path / 'a.npy'))
    assert metric.references.zero_shot == {(0, 1, 0)}
