"""Pairs, pair geometry and NMS against values computed by hand and by brute force."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gclip_mm.scene_graph.models.task_modules import (
    PairSampler,
    all_pairs,
    box_geometry,
    candidate_pairs,
    match_objects,
    pair_geometry,
    pair_masks,
    refined_nms,
    union_boxes,
)

CPU = torch.device('cpu')
BOXES = torch.tensor([[0.0, 0, 10, 10], [20.0, 0, 30, 20], [2.0, 2, 4, 6]])
NONE = 10


def test_all_pairs_lists_ordered_pairs():
    assert all_pairs(0, CPU).shape == all_pairs(1, CPU).shape == (0, 2)
    pairs = all_pairs(3, CPU).tolist()
    assert pairs == [[0, 1], [0, 2], [1, 0], [1, 2], [2, 0], [2, 1]]


def test_union_boxes_contain_both_boxes():
    pairs = torch.tensor([[0, 1], [2, 0]])
    assert union_boxes(BOXES, pairs).tolist() == [[0, 0, 30, 20], [0, 0, 10, 10]]
    assert union_boxes(BOXES, torch.zeros(0, 2, dtype=torch.int64)).shape == (0, 4)


def test_box_geometry_matches_hand_values():
    sizes = torch.tensor([[20.0, 40.0]]).expand(3, 2)  # height 20, width 40
    expected = [0.5, 0.0, 0.75, 1.0, 0.625, 0.5, 0.25, 1.0]
    assert box_geometry(BOXES, sizes)[1].tolist() == pytest.approx(expected)


def test_pair_geometry_matches_hand_values():
    offset, length, ratio, area, shares = pair_geometry(
        BOXES, torch.tensor([[0, 1], [0, 2]])
    ).split([2, 1, 2, 1, 3], dim=1)
    mean_side = (10 + 200**0.5) / 2
    assert offset[0].tolist() == pytest.approx([20 / mean_side, 5 / mean_side])
    assert length[0].item() == pytest.approx(np.log1p(np.hypot(20, 5) / mean_side))
    assert ratio[0].tolist() == pytest.approx([0.0, np.log(0.5)])
    assert area[0].item() == pytest.approx(np.log(100 / 200))
    assert shares.tolist()[0] == [0, 0, 0]
    assert shares[1].tolist() == pytest.approx([8 / 100, 8 / 100, 1.0])


def test_empty_box_has_finite_geometry():
    boxes = torch.tensor([[5.0, 5, 5, 5], [0.0, 0, 9, 9]])
    pairs = torch.tensor([[0, 1], [1, 0]])
    assert pair_geometry(boxes, pairs).isfinite().all()
    assert pair_masks(boxes, pairs, 4).isfinite().all()


def test_pair_masks_equal_covered_share_of_each_cell():
    pairs = all_pairs(3, CPU)
    masks = pair_masks(BOXES, pairs, 5)
    fine = 200  # brute force: count the points of a fine grid
    at = (np.arange(fine) + 0.5) / fine
    for (s, o), mask in zip(pairs.tolist(), masks, strict=True):
        x1, y1, x2, y2 = union_boxes(BOXES, torch.tensor([[s, o]]))[0].tolist()
        xs, ys = x1 + at * (x2 - x1), y1 + at * (y2 - y1)
        for channel, index in enumerate((s, o)):
            bx1, by1, bx2, by2 = BOXES[index].tolist()
            inside = ((ys >= by1) & (ys < by2))[:, None] & ((xs >= bx1) & (xs < bx2))[None]
            share = inside.reshape(5, fine // 5, 5, fine // 5).mean(axis=(1, 3))
            np.testing.assert_allclose(mask[channel].numpy(), share, atol=0.02)


def test_match_objects_uses_inclusive_iou_threshold():
    gt, labels = torch.tensor([[0.0, 0, 10, 10], [20.0, 0, 30, 10]]), torch.tensor([3, 7])
    boxes = torch.tensor([[1.0, 0, 10, 10], [20.0, 0, 30, 20], [21.0, 0, 31, 22], [0, 50, 1, 51]])
    matched, label = match_objects(boxes, gt, labels, NONE, 0.5)
    assert matched.tolist() == [0, 1, -1, -1]  # IoU 0.9, exactly 0.5, below 0.5, 0
    assert label.tolist() == [3, 7, NONE, NONE]
    for count in (0, 2):
        matched, label = match_objects(boxes[:count], gt[:0], labels[:0], NONE, 0.5)
        assert matched.tolist() == [-1] * count and label.tolist() == [NONE] * count


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(0, 8),
    num=st.integers(1, 60),
    fraction=st.sampled_from([0.1, 0.25, 0.5, 1.0]),
    seed=st.integers(0, 999),
)
def test_sampled_pairs_have_correct_labels_and_counts(count, num, fraction, seed):
    rng = np.random.default_rng(seed)
    matched = torch.from_numpy(rng.integers(-1, 5, count))
    ends = rng.integers(0, 5, (int(rng.integers(0, 8)), 2))
    ends = torch.from_numpy(ends[ends[:, 0] != ends[:, 1]])
    predicates = torch.from_numpy(rng.integers(0, NONE, len(ends)))
    pairs, labels = PairSampler(num, fraction).sample(matched, ends, predicates, NONE)
    true = {(*e, p) for e, p in zip(ends.tolist(), predicates.tolist(), strict=True)}
    related = {t[:2] for t in true}
    rows = [tuple(pair) for pair in pairs.tolist()]
    assert rows == sorted(set(rows))  # unique, in ascending order
    assert all(i != j and i < count and j < count for i, j in rows)
    for (i, j), label in zip(rows, labels.tolist(), strict=True):
        shown = (int(matched[i]), int(matched[j]))
        assert (*shown, label) in true if label != NONE else shown not in related
    positives = int((labels != NONE).sum())
    possible = sum(
        (int(matched[i]), int(matched[j])) in related
        for i in range(count)
        for j in range(count)
        if i != j
    )
    assert positives == min(possible, max(1, int(num * fraction)))
    negatives = count * max(count - 1, 0) - possible
    assert len(rows) == positives + min(negatives, num - positives)


def test_sampler_draws_predicates_of_a_pair_uniformly():
    torch.manual_seed(0)
    ends, predicates = torch.tensor([[0, 1]] * 3), torch.tensor([2, 5, 7])
    drawn = [
        PairSampler().sample(torch.tensor([0, 1]), ends, predicates, NONE)[1][0].item()
        for _ in range(60)
    ]
    assert set(drawn) == {2, 5, 7}
    assert min(drawn.count(p) for p in (2, 5, 7)) >= 8  # 20 expected


@pytest.mark.parametrize(
    'options, message',
    [(dict(num=0), 'num must be at least 1'), (dict(pos_fraction=0), r'pos_fraction .*\(0, 1\]')],
)
def test_bad_sampler_option_raises_with_its_name(options, message):
    with pytest.raises(ValueError, match=message):
        PairSampler(**options)


def test_candidate_pairs_filters_by_overlap_and_score():
    scores = torch.tensor([0.9, 0.5, 0.8])
    assert torch.equal(candidate_pairs(BOXES, scores), all_pairs(3, CPU))
    assert candidate_pairs(BOXES, scores, max_pairs=2).tolist() == [[0, 2], [2, 0]]
    assert candidate_pairs(BOXES, scores, require_overlap=True).tolist() == [[0, 2], [2, 0]]
    assert candidate_pairs(BOXES[:1], scores[:1], 5, True).shape == (0, 2)


def test_refined_nms_suppresses_duplicates_per_class():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0.0, 0, 10, 9], [50.0, 50, 60, 60], [0.0, 0, 10, 10]])
    probs = torch.tensor(
        [
            [0.8, 0.1, 0.0],
            [0.7, 0.2, 0.0],  # same class and place as box 0: gets its second class
            [0.6, 0.0, 0.3],  # same class at another place
            [0.5, 0.0, 0.01],  # suppressed, and its second class is too improbable
        ]
    )
    keep, labels, scores = refined_nms(boxes, probs, 0.5)
    assert keep.tolist() == [0, 1, 2]
    assert labels.tolist() == [0, 1, 0]
    assert scores.tolist() == pytest.approx([0.8, 0.2, 0.6])
    keep, labels, scores = refined_nms(boxes[:0], probs[:0], 0.5)
    assert len(keep) == len(labels) == len(scores) == 0
