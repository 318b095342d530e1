"""Scene accuracy against values computed by hand."""

import math

import pytest

from gclip_mm.scene_graph.evaluation import scene_accuracy, scene_rank


def test_scene_rank_counts_higher_scores():
    scores = [0.1, 0.4, 0.2, 0.3]
    assert [scene_rank(scores, label) for label in range(4)] == [3, 0, 2, 1]


def test_ties_go_to_lower_label():
    assert [scene_rank([0.5, 0.5, 0.5], label) for label in range(3)] == [0, 1, 2]


def test_scene_accuracy_is_share_within_top_k():
    result = scene_accuracy([0, 0, 1, 4, 5])
    assert result == {'scene_top1': pytest.approx(2 / 5), 'scene_top5': pytest.approx(4 / 5)}
    assert all(math.isnan(v) for v in scene_accuracy([]).values())
    assert scene_accuracy([2], topk=(3,)) == {'scene_top3': 1.0}


def test_bad_label_or_nan_raises():
    with pytest.raises(ValueError, match=r'scene label 3 is not in \[0, 3\)'):
        scene_rank([0.1, 0.2, 0.7], 3)
    with pytest.raises(ValueError, match='NaN'):
        scene_rank([0.1, float('nan')], 0)
