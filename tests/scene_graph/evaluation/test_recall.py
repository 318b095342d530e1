"""scene_graph_recall against values computed by hand: options, ties, duplicates, empty inputs."""

import math
import subprocess
import sys

import numpy as np
import pytest

from gclip_mm.scene_graph.evaluation import (
    CONVENTIONS,
    RecallOptions,
    box_iou,
    match_image,
    predicate_recall,
    scene_graph_recall,
)

# Three disjoint 10 x 10 boxes of classes 0, 1, 2.
BOXES = np.array([[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]], float)
LABELS = np.array([0, 1, 2])


def gt(relations, boxes=BOXES, labels=LABELS):
    return dict(bboxes=boxes, labels=labels, relations=np.array(relations, int).reshape(-1, 3))


def pred(triplets, num_predicates=3, boxes=BOXES, labels=LABELS, scores=None):
    """Prediction from ``triplets``: (subject, object, {predicate: score}), one per pair."""
    rel_scores = np.zeros((len(triplets), num_predicates))
    for row, (_, _, by_predicate) in enumerate(triplets):
        for predicate, score in by_predicate.items():
            rel_scores[row, predicate] = score
    return dict(
        bboxes=boxes,
        labels=labels,
        scores=np.ones(len(boxes)) if scores is None else np.array(scores, float),
        pairs=np.array([t[:2] for t in triplets], int).reshape(-1, 2),
        rel_scores=rel_scores,
    )


def test_result_has_documented_keys_and_plain_floats():
    result = scene_graph_recall([pred([(0, 1, {0: 1})])], [gt([[0, 1, 0]])], num_predicates=3)
    names = ('R', 'mR', 'F1', 'ngR', 'ngmR', 'A', 'ngA')
    assert set(result) == {f'{n}@{k}' for n in names for k in (20, 50, 100)}
    assert all(type(v) is float for v in result.values())
    result = scene_graph_recall(
        [pred([(0, 1, {0: 1})])],
        [gt([[0, 1, 0]])],
        ks=[5],
        zero_shot_triplets={(0, 1, 0)},
        predicate_groups=dict(head=[0], tail=[1, 2]),
        phrase=True,
    )
    extra = ('zR', 'ngzR', 'head_mR', 'tail_mR', 'phrR', 'phrmR', 'ngphrR', 'ngphrmR')
    assert set(result) == {f'{n}@5' for n in (*names, *extra)}


def test_ranking_uses_product_of_three_scores():
    # 0->1: 0.5 * 0.9 * 0.9 = 0.405 is correct.
    # 1->2: 0.9 * 1.0 * 0.5 = 0.45 is wrong and ranks first.
    prediction = pred([(0, 1, {0: 0.9}), (1, 2, {1: 0.5})], scores=[0.5, 0.9, 1.0])
    result = scene_graph_recall([prediction], [gt([[0, 1, 0]])], ks=(1, 2))
    assert result['R@1'] == 0.0
    assert result['R@2'] == 1.0


@pytest.mark.parametrize(
    'change',
    [
        dict(labels=np.array([2, 1, 2])),  # subject class
        dict(labels=np.array([0, 0, 2])),  # object class
        dict(boxes=BOXES + [[0, 6, 0, 6], [0, 0, 0, 0], [0, 0, 0, 0]]),  # subject box
        dict(boxes=BOXES + [[0, 0, 0, 0], [6, 0, 6, 0], [0, 0, 0, 0]]),  # object box
    ],
)
def test_hit_needs_matching_subject_and_object(change):
    result = scene_graph_recall([pred([(0, 1, {0: 1})], **change)], [gt([[0, 1, 0]])])
    assert result['R@20'] == result['ngR@20'] == result['A@20'] == 0.0


def test_reversed_pair_is_not_a_hit():
    result = scene_graph_recall([pred([(1, 0, {0: 1})])], [gt([[0, 1, 0]])])
    assert result['R@20'] == 0.0
    assert result['A@20'] == 0.0  # (1, 0) is not a ground-truth pair either


def test_iou_thr_is_inclusive():
    # Upper half of the box: IoU 50 / 100.
    half = BOXES.copy()
    half[:, 3] = 5
    prediction = pred([(0, 1, {0: 1})], boxes=half)
    assert scene_graph_recall([prediction], [gt([[0, 1, 0]])], iou_thr=0.5)['R@20'] == 1.0
    assert scene_graph_recall([prediction], [gt([[0, 1, 0]])], iou_thr=0.51)['R@20'] == 0.0


def test_iou_plus_one_includes_last_pixel():
    a = np.array([[0, 0, 9, 9]], float)
    b = np.array([[0, 0, 9, 4]], float)
    assert box_iou(a, b)[0, 0] == 36 / 81
    assert box_iou(a, b, plus_one=True)[0, 0] == 50 / 100
    assert box_iou(a, b, plus_one='intersection')[0, 0] == 50 / (81 + 36 - 50)
    boxes = np.array([[0, 0, 9, 9], [20, 0, 29, 9]], float)
    half = boxes - [0, 0, 0, 5]
    prediction = pred([(0, 1, {0: 1})], boxes=half, labels=LABELS[:2])
    truth = gt([[0, 1, 0]], boxes, LABELS[:2])
    assert scene_graph_recall([prediction], [truth])['R@20'] == 0.0
    assert scene_graph_recall([prediction], [truth], iou_plus_one=True)['R@20'] == 1.0


def test_iou_of_boxes_without_area_is_zero():
    line = np.array([[3, 3, 3, 9], [3, 3, 3, 9]], float)
    np.testing.assert_array_equal(box_iou(line, line), np.zeros((2, 2)))


def test_graph_constraint_allows_one_predicate_per_pair():
    # Two true predicates for one pair: a triplet has only one of them.
    prediction = pred([(0, 1, {0: 0.6, 1: 0.4})])
    truth = gt([[0, 1, 0], [0, 1, 1]])
    result = scene_graph_recall([prediction], [truth], ks=(1, 2))
    assert result['R@1'] == result['R@2'] == 0.5
    assert result['ngR@1'] == 0.5
    assert result['ngR@2'] == 1.0


def test_without_constraint_weak_predicates_of_strong_pair_rank_first():
    # All of 0->1 (0.9, 0.8, 0.7) come before 1->2 (0.5).
    prediction = pred([(0, 1, {0: 0.9, 1: 0.8, 2: 0.7}), (1, 2, {0: 0.5})])
    truth = gt([[1, 2, 0]])
    result = scene_graph_recall([prediction], [truth], ks=(2, 3, 4))
    assert [result[f'R@{k}'] for k in (2, 3, 4)] == [1, 1, 1]
    assert [result[f'ngR@{k}'] for k in (2, 3, 4)] == [0, 0, 1]


def test_predicates_per_pair_limits_competing_predicates():
    prediction = pred([(0, 1, {0: 0.9, 1: 0.8, 2: 0.7}), (1, 2, {0: 0.5})])
    truth = gt([[1, 2, 0], [0, 1, 2]])
    result = scene_graph_recall([prediction], [truth], ks=(3, 4), predicates_per_pair=2)
    assert result['ngR@3'] == 0.5  # 0.9, 0.8, then 1->2
    assert result['ngR@4'] == 0.5  # the third predicate of 0->1 never competes
    assert result['R@3'] == 0.5  # unaffected


def test_relation_hit_by_several_triplets_counts_once():
    # Both box 0 and box 3 match the subject.
    boxes, labels = np.vstack((BOXES, BOXES[:1] + 1)), np.array([0, 1, 2, 0])
    prediction = pred([(0, 1, {0: 0.9}), (3, 1, {0: 0.8})], boxes=boxes, labels=labels)
    result = scene_graph_recall([prediction], [gt([[0, 1, 0], [1, 2, 0]])])
    assert result['R@20'] == 0.5


def test_triplet_can_hit_several_relations():
    # Two ground-truth subjects of the same class, both matched by predicted box 0.
    truth = gt([[0, 1, 0], [3, 1, 0]], np.vstack((BOXES, BOXES[:1] + 1)), np.array([0, 1, 2, 0]))
    assert scene_graph_recall([pred([(0, 1, {0: 1})])], [truth], ks=(1,))['R@1'] == 1.0


def test_duplicate_ground_truth_counts_twice():
    truth = gt([[0, 1, 0], [0, 1, 0], [1, 2, 0]])
    result = scene_graph_recall([pred([(0, 1, {0: 1})])], [truth])
    assert result['R@20'] == pytest.approx(2 / 3)


def test_repeated_pair_keeps_rank_but_cannot_hit():
    prediction = pred([(0, 1, {0: 0.9}), (0, 1, {1: 0.8}), (1, 2, {0: 0.7})])
    truth = gt([[0, 1, 0], [0, 1, 1], [1, 2, 0]])
    result = scene_graph_recall([prediction], [truth], ks=(1, 2, 3))
    assert [result[f'R@{k}'] for k in (1, 2, 3)] == pytest.approx([1 / 3, 1 / 3, 2 / 3])
    assert [result[f'A@{k}'] for k in (1, 2, 3)] == pytest.approx([1 / 3, 1 / 3, 2 / 3])
    assert result['ngR@3'] == 1.0


def test_ties_are_broken_by_position():
    tied = [(0, 1, {0: 0.5}), (1, 2, {0: 0.5})]
    first, second = gt([[0, 1, 0]]), gt([[1, 2, 0]])
    for name in ('R@1', 'ngR@1'):
        assert scene_graph_recall([pred(tied)], [first], ks=(1,))[name] == 1.0
        assert scene_graph_recall([pred(tied)], [second], ks=(1,))[name] == 0.0
        assert scene_graph_recall([pred(tied[::-1])], [second], ks=(1,))[name] == 1.0
    # Between predicates of one pair: the lower index.
    both = pred([(0, 1, {1: 0.5, 2: 0.5})])
    for name in ('R@1', 'ngR@1'):
        assert scene_graph_recall([both], [gt([[0, 1, 1]])], ks=(1,))[name] == 1.0
        assert scene_graph_recall([both], [gt([[0, 1, 2]])], ks=(1,))[name] == 0.0


def test_ties_at_cutoff_keep_lower_positions():
    # 30 pairs with equal scores: exactly the first K are kept, regardless of np.partition.
    n = 31
    boxes = np.stack([np.array([20 * i, 0, 20 * i + 10, 10.0]) for i in range(n)])
    labels = np.zeros(n, int)
    chain = [(i, i + 1, {0: 0.5}) for i in range(n - 1)]
    truth = gt([[i, i + 1, 0] for i in range(n - 1)], boxes, labels)
    prediction = pred(chain, boxes=boxes, labels=labels)
    for k in (1, 7, 29, 30):
        ranks = match_image(prediction, truth, max_k=k)
        np.testing.assert_array_equal(np.flatnonzero(ranks.rank < k), np.arange(k))
        np.testing.assert_array_equal(np.flatnonzero(ranks.rank_ng < k), np.arange(k))


def test_image_and_pooled_averages_match_hand_values():
    # Image A: 1 of 1. Image B: 1 of 3.
    predictions = [pred([(0, 1, {0: 1})]), pred([(0, 1, {0: 1})])]
    truths = [gt([[0, 1, 0]]), gt([[0, 1, 0], [1, 2, 0], [2, 1, 1]])]
    by_image = scene_graph_recall(predictions, truths, average='image')
    assert by_image['R@20'] == pytest.approx((1 + 1 / 3) / 2)
    # Predicate 0: image A 1/1, image B 1/2; predicate 1: image B 0/1; predicate 2 absent.
    assert by_image['mR@20'] == pytest.approx(((1 + 1 / 2) / 2 + 0 + 0) / 3)
    pooled = scene_graph_recall(predictions, truths, average='pooled')
    assert pooled['R@20'] == pytest.approx(2 / 4)
    assert pooled['mR@20'] == pytest.approx((2 / 3 + 0 + 0) / 3)
    # Pair accuracy is always pooled; the other pairs of B were not predicted.
    assert by_image['A@20'] == pooled['A@20'] == pytest.approx(2 / 4)


@pytest.mark.parametrize('convention', [None, *CONVENTIONS])
def test_mean_recall_divides_by_all_predicates(convention):
    """The one annotated predicate of three is found: 1/3, as every public evaluator has it."""
    boxes = [[0, 0, 9, 9], [20, 0, 29, 9]]
    truth = dict(bboxes=boxes, labels=[0, 1], relations=[[0, 1, 0]])
    found = dict(bboxes=boxes, labels=[0, 1], scores=[1.0, 1.0], pairs=[[0, 1]])
    found['rel_scores'] = [[0.7, 0.2, 0.1]]
    options = CONVENTIONS.get(convention, {})
    for count in (3, None):  # given, or the columns of rel_scores
        result = scene_graph_recall([found], [truth], num_predicates=count, **options)
        assert result['R@20'] == 1.0
        assert result['mR@20'] == result['ngmR@20'] == pytest.approx(1 / 3)
        assert result['F1@20'] == pytest.approx(2 * (1 / 3) / (4 / 3))
    skipping = scene_graph_recall([found], [truth], **{**options, 'absent': 'skip'})
    assert skipping['mR@20'] == skipping['ngmR@20'] == skipping['F1@20'] == 1.0


def test_groups_divide_by_their_predicates():
    truth = gt([[0, 1, 0], [1, 2, 1]])
    prediction = pred([(0, 1, {0: 1})], num_predicates=4)
    groups = dict(head=[0, 1], tail=[2, 3])
    result = scene_graph_recall([prediction], [truth], predicate_groups=groups)
    assert (result['head_mR@20'], result['tail_mR@20']) == (0.5, 0.0)
    result = scene_graph_recall([prediction], [truth], predicate_groups=groups, absent='skip')
    assert result['head_mR@20'] == 0.5 and math.isnan(result['tail_mR@20'])
    with pytest.raises(ValueError, match=r"\['tail'\] must hold labels in \[0, 4\)"):
        scene_graph_recall([prediction], [truth], predicate_groups=dict(tail=[4]))


def test_phrase_needs_the_box_around_both_and_the_classes():
    # Both predicted boxes are halves of the annotated ones; the box around them is the same.
    halves = np.array([[0, 0, 4, 10], [26, 0, 30, 10], [40, 0, 50, 10]], float)
    truth = gt([[0, 1, 0]])
    result = scene_graph_recall([pred([(0, 1, {0: 1})], boxes=halves)], [truth], phrase=True)
    assert result['R@20'] == 0.0
    assert result['phrR@20'] == result['ngphrR@20'] == 1.0
    assert result['phrmR@20'] == pytest.approx(1 / 3)
    for labels in ([2, 1, 2], [0, 0, 2], [1, 0, 2]):
        other = pred([(0, 1, {0: 1})], boxes=halves, labels=np.array(labels))
        assert scene_graph_recall([other], [truth], phrase=True)['phrR@20'] == 0.0


def test_pair_accuracy_can_cut_before_it_filters():
    # Two wrong pairs rank first, so that the first two triplets hold no annotated pair.
    triplets = [(2, 0, {0: 0.9}), (2, 1, {0: 0.8}), (0, 1, {0: 0.7})]
    prediction, truth = pred(triplets), gt([[0, 1, 0]])
    by = {
        how: scene_graph_recall([prediction], [truth], ks=(2, 3), pair_accuracy=how)
        for how in ('filter', 'cut')
    }
    assert [by['filter'][f'{n}@2'] for n in ('A', 'ngA')] == [1.0, 1.0]
    assert [by['cut'][f'{n}@2'] for n in ('A', 'ngA')] == [0.0, 0.0]
    assert [by['cut'][f'{n}@3'] for n in ('A', 'ngA')] == [1.0, 1.0]
    # A hit of a pair that is not annotated does not count: box 3 is a copy of box 0.
    copy = dict(boxes=np.vstack((BOXES, BOXES[:1])), labels=np.array([0, 1, 2, 0]))
    found = scene_graph_recall([pred([(3, 1, {0: 1})], **copy)], [truth], pair_accuracy='cut')
    assert (found['R@20'], found['A@20']) == (1.0, 0.0)


def test_min_score_drops_triplets_without_the_constraint():
    prediction, truth = pred([(0, 1, {0: 1e-5})]), gt([[0, 1, 0]])
    result = scene_graph_recall([prediction], [truth], min_score=1e-5)
    assert (result['R@20'], result['ngR@20']) == (1.0, 0.0)
    assert scene_graph_recall([prediction], [truth], min_score=0.99e-5)['ngR@20'] == 1.0


def test_averages_can_differ_without_the_constraint():
    predictions = [pred([(0, 1, {0: 1})]), pred([(0, 1, {0: 1})]), pred([])]
    truths = [gt([[0, 1, 0]]), gt([[0, 1, 0], [1, 2, 0], [2, 1, 1]]), gt([[0, 1, 0]])]
    options = dict(empty_pred='skip', ng_average='pooled', ng_empty_pred='zero')
    result = scene_graph_recall(predictions, truths, **options)
    assert result['R@20'] == pytest.approx((1 + 1 / 3) / 2)
    assert result['ngR@20'] == pytest.approx(2 / 5)


def test_pair_accuracy_ranks_ground_truth_pairs_only():
    # A wrong pair ranks first, so R@1 misses a relation that A@1 counts.
    prediction = pred([(2, 0, {0: 0.9}), (0, 1, {0: 0.8}), (1, 2, {2: 0.7})])
    truth = gt([[0, 1, 0], [1, 2, 1]])
    result = scene_graph_recall([prediction], [truth], ks=(1, 2))
    assert result['R@1'] == 0.0
    assert result['A@1'] == 0.5
    assert result['A@2'] == 0.5  # pair (1, 2) has the wrong predicate


def test_pair_accuracy_is_not_limited_to_first_k_of_full_ranking():
    others = [(2, 0, {0: 0.9}), (2, 1, {0: 0.9}), (1, 0, {0: 0.9})]
    result = scene_graph_recall([pred([*others, (0, 1, {0: 0.1})])], [gt([[0, 1, 0]])], ks=(1,))
    assert result['R@1'] == 0.0
    assert result['A@1'] == 1.0


def test_zero_shot_recall_counts_unseen_triplets_only():
    # (0, 1, 0) is unseen and found in A; (1, 2, 1) is unseen and missed in B; C has none.
    predictions = [pred([(0, 1, {0: 1})]), pred([(0, 1, {1: 1})]), pred([(0, 1, {1: 1})])]
    truths = [gt([[0, 1, 0], [1, 2, 2]]), gt([[1, 2, 1], [0, 1, 1]]), gt([[0, 1, 1]])]
    unseen = {(0, 1, 0), (1, 2, 1)}
    result = scene_graph_recall(predictions, truths, ks=(5,), zero_shot_triplets=unseen)
    assert result['zR@5'] == result['ngzR@5'] == 0.5
    as_array = scene_graph_recall(
        predictions, truths, ks=(5,), zero_shot_triplets=np.array(sorted(unseen))
    )
    assert as_array == result
    pooled = scene_graph_recall(
        predictions[:2] + predictions[:1],
        truths[:2] + truths[:1],
        ks=(5,),
        zero_shot_triplets=unseen,
        average='pooled',
    )
    assert pooled['zR@5'] == pytest.approx(2 / 3)


def test_zero_shot_is_ranked_among_all_triplets():
    prediction = pred([(1, 2, {0: 0.9}), (0, 1, {0: 0.5})])
    result = scene_graph_recall(
        [prediction], [gt([[0, 1, 0]])], ks=(1, 2), zero_shot_triplets={(0, 1, 0)}
    )
    assert (result['zR@1'], result['zR@2']) == (0.0, 1.0)


def test_images_without_ground_truth_relations_are_ignored():
    predictions = [pred([(0, 1, {0: 1})]), pred([(0, 1, {0: 1})])]
    result = scene_graph_recall(predictions, [gt([[0, 1, 0]]), gt([])])
    assert result['R@20'] == result['A@20'] == 1.0 and result['mR@20'] == pytest.approx(1 / 3)


@pytest.mark.parametrize('average', ['image', 'pooled'])
def test_no_ground_truth_gives_nan(average):
    for predictions, truths in (([], []), ([pred([(0, 1, {0: 1})])], [gt([])])):
        result = scene_graph_recall(
            predictions, truths, average=average, zero_shot_triplets={(0, 1, 0)}
        )
        assert len(result) == 27
        assert all(math.isnan(v) for v in result.values())


def test_empty_pred_counts_zero_or_skips_image():
    nothing = pred([])
    no_boxes = dict(bboxes=[], labels=[], scores=[], pairs=[], rel_scores=[])
    truths = [gt([[0, 1, 0]])] * 3
    predictions = [pred([(0, 1, {0: 1})]), nothing, no_boxes]
    zero = scene_graph_recall(predictions, truths, empty_pred='zero')
    assert zero['R@20'] == zero['ngR@20'] == zero['A@20'] == pytest.approx(1 / 3)
    assert zero['mR@20'] == pytest.approx(1 / 9)  # one predicate of three
    skip = scene_graph_recall(predictions, truths, empty_pred='skip')
    assert skip['R@20'] == skip['ngR@20'] == skip['A@20'] == 1.0
    assert skip['mR@20'] == pytest.approx(1 / 3)
    # An image with only wrong pairs has predictions and is not skipped.
    wrong = scene_graph_recall([pred([(2, 1, {0: 1})])], truths[:1], empty_pred='skip')
    assert wrong['R@20'] == 0.0


def test_mean_of_predicate_recall_equals_mean_recall():
    predictions = [pred([(0, 1, {0: 1})]), pred([(0, 1, {0: 1})])]
    truths = [gt([[0, 1, 0]]), gt([[0, 1, 0], [1, 2, 0], [2, 1, 1]])]
    matches = [match_image(p, t) for p, t in zip(predictions, truths, strict=True)]
    terms = predicate_recall(matches, (20,), 3)
    np.testing.assert_allclose(terms['R@20'], [0.75, 0.0, np.nan])
    np.testing.assert_array_equal(terms['count'], [3, 1, 0])
    pooled = predicate_recall(matches, (20,), 3, RecallOptions(average='pooled'))
    np.testing.assert_allclose(pooled['R@20'], [2 / 3, 0.0, np.nan])
    mean = scene_graph_recall(predictions, truths, absent='skip')['mR@20']
    assert np.nanmean(terms['R@20']) == pytest.approx(mean)


def test_inputs_can_be_iterators_or_tensors_and_are_not_modified():
    torch = pytest.importorskip('torch')
    prediction, truth = pred([(0, 1, {0: 0.5}), (1, 2, {1: 0.2})]), gt([[0, 1, 0]])
    before = {k: v.copy() for k, v in prediction.items()}
    expected = scene_graph_recall([prediction], [truth])
    for key, value in before.items():
        np.testing.assert_array_equal(prediction[key], value)
    assert scene_graph_recall(iter([prediction]), iter([truth])) == expected
    as_torch = {k: torch.as_tensor(v) for k, v in prediction.items()}
    assert scene_graph_recall([as_torch], [truth]) == expected


def test_conventions_are_valid_keyword_arguments():
    for name, options in CONVENTIONS.items():
        result = scene_graph_recall([pred([(0, 1, {0: 1})])], [gt([[0, 1, 0]])], **options)
        assert result['R@20'] == 1.0, name
    assert CONVENTIONS['vg150']['iou_plus_one'] and CONVENTIONS['vg150']['empty_pred'] == 'skip'


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(empty_pred='one'), r"empty_pred must be one of \('zero', 'skip'\)"),
        (dict(average='micro'), r"average must be one of \('image', 'pooled'\)"),
        (dict(ks=()), 'ks must be positive'),
        (dict(ks=(0,)), 'ks must be positive'),
        (dict(iou_thr=0.0), r'iou_thr must be in \(0, 1\]'),
        (dict(predicates_per_pair=0), 'predicates_per_pair'),
        (dict(absent='ignore'), r"absent must be one of \('zero', 'skip'\)"),
        (dict(pair_accuracy='first'), r"pair_accuracy must be one of \('filter', 'cut'\)"),
        (dict(ng_average='micro'), r"ng_average must be None or one of \('image', 'pooled'\)"),
        (dict(iou_plus_one='union'), 'iou_plus_one must be one of'),
        (dict(min_score=-1.0), 'min_score must be None or >= 0'),
        (dict(missing='zero'), "unknown option 'missing'; the valid ones are .*'absent'"),
        (dict(zero_shot_triplets={(0, 1)}), 'zero_shot_triplets'),
        (dict(num_predicates=4), 'background'),
    ],
)
def test_bad_option_raises_with_its_name(options, message):
    with pytest.raises(ValueError, match=message):
        scene_graph_recall([pred([(0, 1, {0: 1})])], [gt([[0, 1, 0]])], **options)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(pairs=[[0, 3]]), r"image 1: prediction\['pairs'\] must be in \[0, 3\)"),
        (dict(pairs=[[-1, 0]]), r"prediction\['pairs'\]"),
        (dict(pairs=[[0, 1, 2]]), r'shape \(N, 2\)'),
        (dict(pairs=[[0.0, 1.0]]), 'must be integers'),
        (dict(scores=[1.0, 1.0]), '3 bboxes but 2 scores'),
        (dict(labels=[0, 1]), '3 bboxes but 2 labels'),
        (dict(rel_scores=[[np.nan, 0, 0]]), r"'rel_scores'\] holds NaN"),
        (dict(rel_scores=[[1, 0, 0], [1, 0, 0]]), 'one row for each of the 1 pairs'),
        (dict(bboxes=[[0, 0, np.inf, 1]] * 3), r"\['bboxes'\] holds NaN"),
    ],
)
def test_bad_prediction_raises_with_its_key(change, message):
    good, truth = pred([(0, 1, {0: 1})]), gt([[0, 1, 0]])
    with pytest.raises(ValueError, match=message):
        scene_graph_recall([good, {**good, **change}], [truth, truth])


def test_bad_ground_truth_raises_with_its_key():
    good = pred([(0, 1, {0: 1})])
    with pytest.raises(ValueError, match=r"ground_truth\['relations'\]\[:, :2\]"):
        scene_graph_recall([good], [gt([[0, 3, 0]])])
    with pytest.raises(ValueError, match=r'\[:, 2\] must be in \[0, 3\)'):
        scene_graph_recall([good], [gt([[0, 1, 3]])], num_predicates=3)
    with pytest.raises(ValueError, match="no 'relations'"):
        scene_graph_recall([good], [dict(bboxes=BOXES, labels=LABELS)])
    with pytest.raises(ValueError, match='more predictions'):
        scene_graph_recall([good], [])
    with pytest.raises(ValueError, match='more ground_truths'):
        scene_graph_recall([], [gt([[0, 1, 0]])])


def test_recall_imports_without_mmdetection():
    """The function works without MMDetection, MMEngine and MMCV."""
    code = (
        'import sys\n'
        'for name in ("mmdet", "mmengine", "mmcv"):\n'
        '    sys.modules[name] = None\n'
        'from gclip_mm.scene_graph.evaluation import scene_graph_recall\n'
        'gt = dict(bboxes=[[0, 0, 9, 9], [9, 0, 19, 9]], labels=[0, 1], relations=[[0, 1, 0]])\n'
        'pred = dict(gt, scores=[1., 1.], pairs=[[0, 1]], rel_scores=[[1.]])\n'
        'print(scene_graph_recall([pred], [gt], ks=(1,))["R@1"])\n'
        'from gclip_mm.scene_graph.datasets import SceneGraphWriter\n'
    )
    path = f'import sys; sys.path[:0] = {sys.path!r}\n'
    run = subprocess.run([sys.executable, '-c', path + code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == '1.0'
