"""PredicateFlips: which predicates a flip swaps, given the metainfo."""

import numpy as np
import pytest

from gclip_mm.scene_graph.transforms.flips import PredicateFlips


def flips(predicates, **metainfo):
    return PredicateFlips.from_metainfo(dict(predicates=predicates, **metainfo))


def test_listed_pairs_swap():
    table = flips(
        ('left of', 'on', 'right of', 'over', 'under'),
        flip_predicate_pairs=[('right of', 'left of')],
        vertical_flip_predicate_pairs=[('over', 'under')],
    )
    labels = np.arange(5)
    assert table.apply(labels, 'horizontal').tolist() == [2, 1, 0, 3, 4]
    assert table.apply(labels, 'vertical').tolist() == [0, 1, 2, 4, 3]
    assert table.apply(labels, 'diagonal').tolist() == [2, 1, 0, 4, 3]
    assert table.oriented().tolist() == [True, False, True, True, True]


def test_predicates_without_direction_need_no_pairs():
    table = flips(('on', 'wearing', 'upright', 'copyright'))
    for direction in ('horizontal', 'vertical', 'diagonal'):
        assert table.apply(np.arange(4), direction).tolist() == [0, 1, 2, 3]
    assert not table.oriented().any()


@pytest.mark.parametrize(
    ('predicate', 'direction', 'key'),
    [
        ('to the LEFT of', 'horizontal', "flip_predicate_pairs=[('left of', 'right of')]"),
        ('to the left of', 'diagonal', 'flip_predicate_pairs='),
        ('standing above', 'vertical', 'vertical_flip_predicate_pairs='),
    ],
)
def test_unlisted_directional_predicate_raises(predicate, direction, key):
    table = flips(('on', predicate))
    assert table.oriented().tolist() == [False, True]
    with pytest.raises(ValueError, match=predicate) as error:
        table.apply(np.array([0]), direction)
    assert key in str(error.value)
    other = {'horizontal': 'vertical', 'vertical': 'horizontal'}.get(direction)
    if other:
        assert table.apply(np.array([0, 1]), other).tolist() == [0, 1]


def test_empty_list_means_no_swaps():
    table = flips(('left handed', 'on'), flip_predicate_pairs=[])
    assert table.apply(np.array([0, 1]), 'horizontal').tolist() == [0, 1]


@pytest.mark.parametrize(
    ('pairs', 'message'),
    [
        ([('left of', 'rigth of')], "'rigth of', which is not a predicate"),
        ([('left of', 'right of'), ('left of', 'on')], 'twice'),
        ([('on', 'on')], 'twice'),
        (['ab'], 'pairs of predicate names'),
        ([('left of', 'right of', 'on')], 'pairs of predicate names'),
    ],
)
def test_bad_pair_raises_with_its_name(pairs, message):
    with pytest.raises(ValueError, match=message):
        flips(('left of', 'right of', 'on'), flip_predicate_pairs=pairs)


def test_unknown_direction_raises():
    with pytest.raises(ValueError, match="'sideways'"):
        flips(('on',)).apply(np.array([0]), 'sideways')
