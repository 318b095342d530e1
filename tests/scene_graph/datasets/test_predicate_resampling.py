"""PredicateResampling against recorded figures of PySGG, and its way through the pipeline."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.registry import DATASETS
from mmengine.registry import DefaultScope

import gclip_mm  # noqa: F401
from gclip_mm.scene_graph.datasets import SceneGraphWriter
from gclip_mm.scene_graph.datasets.predicate_resampling import IGNORED, repeat_factors
from gclip_mm.scene_graph.engine.frequency_bias_hook import count_relations
from gclip_mm.scene_graph.models.task_modules.pair_sampler import PairSampler
from gclip_mm.scene_graph.transforms.flips import PredicateFlips

RECORDED = json.loads(Path(__file__).with_name('resampling.json').read_text())
PREDICATES = [f'p{i}' for i in range(10)]
BOXES = [[10 * i, 0, 10 * i + 9, 9] for i in range(5)]


@pytest.fixture(autouse=True, scope='module')
def mmdet_scope():
    with DefaultScope.overwrite_default_scope('mmdet'):
        yield


def images():
    """Relations of 40 images; no pair has two."""
    rng = np.random.RandomState(3)
    for _ in range(40):
        pairs = [(i, j) for i in range(5) for j in range(5) if i != j]
        chosen = rng.permutation(len(pairs))[: rng.randint(0, 7)]
        predicates = (rng.random_sample(len(chosen)) ** 3 * 10).astype(int)
        yield [[*pairs[a], int(p)] for a, p in zip(chosen, predicates, strict=True)]


@pytest.fixture(scope='module')
def ann_file(tmp_path_factory):
    writer = SceneGraphWriter(['thing'], PREDICATES)
    for i, relations in enumerate(images()):
        writer.add_image(f'{i}.jpg', 60, 20, BOXES, [0] * 5, relations)
    path = tmp_path_factory.mktemp('resampling') / 'train.json'
    writer.write(path)
    return str(path)


def build(ann_file, **options):
    inner = dict(type='SceneGraphDataset', ann_file=ann_file, data_prefix=dict(img=''), pipeline=[])
    return DATASETS.build(dict(type='PredicateResampling', dataset=inner, **options))


@pytest.mark.parametrize('seed', [0, 1])
def test_factors_and_repeats_equal_those_of_pysgg(ann_file, seed):
    dataset = build(ann_file, threshold=0.06, drop_rate=0.4, seed=seed)
    recorded = RECORDED['seeds'][str(seed)]
    counted = count_relations(dataset, False)[0].sum((0, 1))
    seen = counted > 0  # PySGG gives a predicate without relations a factor that nothing has
    assert seen.sum() >= 8
    assert dataset.factors[seen].tolist() == np.array(recorded['factors'])[seen].tolist()
    assert dataset.repeats.tolist() == recorded['repeats']
    assert len(dataset) == sum(recorded['repeats'])


def test_relations_are_dropped_at_the_rates_of_pysgg(ann_file):
    dataset = build(ann_file, threshold=0.06, drop_rate=0.4, seed=1)
    first = np.cumsum(dataset.repeats) - dataset.repeats
    np.random.seed(0)
    for image, rates in RECORDED['drop_rates'].items():
        infos = [dataset.get_data_info(int(first[int(image)])) for _ in range(2000)]
        dropped = np.mean([info['relations'][:, 2] == IGNORED for info in infos], axis=0)
        # Four standard deviations of both estimates.
        np.testing.assert_allclose(
            dropped, rates, atol=4 * (0.2 * 0.8 * (1 / 2000 + 1 / 4000)) ** 0.5
        )
    # The data set itself is unchanged, and so are images that are not repeated.
    whole = [dataset.dataset.get_data_info(i)['relations'] for i in range(40)]
    assert [r[:, 2].tolist() for r in whole] == [[x[2] for x in r] for r in images()]
    once = int(np.flatnonzero(dataset.repeats == 1)[0])
    assert (dataset.get_data_info(int(first[once]))['relations'][:, 2] != IGNORED).all()


def test_factors_follow_the_formula():
    counts = np.array([900, 90, 9, 1, 0])
    exact = np.sqrt(0.1 / (counts[1:4] / 1000))
    assert repeat_factors(counts, 0.1, np.full(5, 0.999)).tolist() == [1, 1, 3, 10, 1]
    assert exact.tolist() == pytest.approx([1.054, 3.333, 10.0], abs=1e-3)
    low = repeat_factors(counts, 0.1, np.zeros(5)).tolist()
    assert low == [1, 2, 4, 10, 1]


def test_an_ignored_pair_is_neither_positive_nor_negative():
    sampler = PairSampler(num=100, pos_fraction=1.0)
    pairs = torch.tensor([[0, 1], [1, 2], [1, 2], [2, 0]])
    labels = torch.tensor([3, IGNORED, 5, IGNORED])
    for _ in range(5):
        chosen, found = sampler.sample(torch.arange(3), pairs, labels, num_predicates=7)
        result = dict(zip(map(tuple, chosen.tolist()), found.tolist(), strict=True))
        # (1, 2) has another relation; (2, 0) has none left.
        assert result == {(0, 1): 3, (0, 2): 7, (1, 0): 7, (1, 2): 5, (2, 1): 7}


def test_a_flip_leaves_ignored_relations_ignored():
    flips = PredicateFlips(('left of', 'right of'), (1, 0), (0, 1))
    assert flips.apply(np.array([0, IGNORED, 1]), 'horizontal').tolist() == [1, IGNORED, 0]


@pytest.mark.parametrize(
    ('options', 'message'),
    [(dict(threshold=0.0), 'threshold must be above 0'), (dict(drop_rate=1.5), 'drop_rate must')],
)
def test_bad_options_raise(ann_file, options, message):
    with pytest.raises(ValueError, match=message):
        build(ann_file, **options)


def test_other_data_sets_are_refused(ann_file):
    inner = dict(type='CocoDataset', ann_file=ann_file, data_prefix=dict(img=''))
    with pytest.raises(TypeError, match='needs a SceneGraphDataset, got CocoDataset'):
        DATASETS.build(dict(type='PredicateResampling', dataset=inner))
