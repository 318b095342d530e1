"""scene_graph_recall against a slow independent implementation of the definitions."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gclip_mm.scene_graph.evaluation import scene_graph_recall

NUM_CLASSES, NUM_PREDICATES = 2, 3


def iou(a, b, plus_one):
    def side(low, high):
        return max(high - low + plus_one, 0)

    inter = side(max(a[0], b[0]), min(a[2], b[2])) * side(max(a[1], b[1]), min(a[3], b[3]))
    union = side(a[0], a[2]) * side(a[1], a[3]) + side(b[0], b[2]) * side(b[1], b[3]) - inter
    return inter / union if union > 0 else 0.0


def ranked_triplets(p, constraint, per_pair):
    """(subject, object, predicate, may hit), best first; relies on Python's stable sort."""
    triplets = []
    seen = set()
    for (s, o), scores in zip(p['pairs'], p['rel_scores'], strict=True):
        order = sorted(range(len(scores)), key=lambda i: -scores[i])
        order = order[:1] if constraint else sorted(order[:per_pair])
        for predicate in order:
            score = p['scores'][s] * p['scores'][o] * scores[predicate]
            triplets.append((score, s, o, predicate))
    triplets.sort(key=lambda t: -t[0])
    result = []
    for _, s, o, predicate in triplets:
        result.append((s, o, predicate, not constraint or (s, o) not in seen))
        seen.add((s, o))
    return result


def hit_relations(p, t, triplets, iou_thr, plus_one):
    """Indices of the relations hit by the triplets."""
    hit = set()
    for (s, o, predicate, may_hit), (i, (gs, go, gp)) in itertools.product(
        triplets, enumerate(t['relations'])
    ):
        if (
            may_hit
            and predicate == gp
            and p['labels'][s] == t['labels'][gs]
            and p['labels'][o] == t['labels'][go]
            and iou(p['bboxes'][s], t['bboxes'][gs], plus_one) >= iou_thr
            and iou(p['bboxes'][o], t['bboxes'][go], plus_one) >= iou_thr
        ):
            hit.add(i)
    return hit


def mean(values):
    values = list(values)
    return sum(values) / len(values) if values else math.nan


def recall(images, average):
    """Recall over ``images``: (hit indices, counted relation indices) for each."""
    images = [(hit & wanted, wanted) for hit, wanted in images if wanted]
    if average == 'image':
        return mean(len(hit) / len(wanted) for hit, wanted in images)
    total = sum(len(wanted) for _, wanted in images)
    return sum(len(hit) for hit, _ in images) / total if total else math.nan


def reference(
    predictions,
    truths,
    ks,
    iou_thr,
    plus_one,
    empty_pred,
    average,
    unseen,
    per_pair,
    absent,
    first,
):
    images = [
        (p, t)
        for p, t in zip(predictions, truths, strict=True)
        if len(t['relations']) and (len(p['pairs']) or empty_pred == 'zero')
    ]
    result = {}
    for prefix, k in itertools.product(('', 'ng'), ks):
        hits = []
        for p, t in images:
            triplets = ranked_triplets(p, not prefix, per_pair)[:k]
            hits.append((hit_relations(p, t, triplets, iou_thr, plus_one), t))
        result[f'{prefix}R@{k}'] = recall(
            [(hit, set(range(len(t['relations'])))) for hit, t in hits], average
        )
        by_predicate = [
            recall(
                [
                    (hit, {i for i, r in enumerate(t['relations']) if r[2] == predicate})
                    for hit, t in hits
                ],
                average,
            )
            for predicate in range(NUM_PREDICATES)
        ]
        present = [v for v in by_predicate if not math.isnan(v)]
        result[f'{prefix}mR@{k}'] = mean(present)
        if absent == 'zero' and present:
            result[f'{prefix}mR@{k}'] = sum(present) / NUM_PREDICATES
        if not prefix:
            r, mr = result[f'R@{k}'], result[f'mR@{k}']
            result[f'F1@{k}'] = 2 * r * mr / (r + mr) if r + mr else 0.0
        zero_shot = []
        for hit, t in hits:
            classes = [(t['labels'][s], t['labels'][o], q) for s, o, q in t['relations']]
            zero_shot.append((hit, {i for i, triplet in enumerate(classes) if triplet in unseen}))
        result[f'{prefix}zR@{k}'] = recall(zero_shot, average)
    for prefix, k in itertools.product(('', 'ng'), ks):
        found = total = 0
        for p, t in images:
            gt_pairs = {(s, o) for s, o, _ in t['relations']}
            triplets = ranked_triplets(p, not prefix, per_pair)
            if first == 'cut':
                triplets = triplets[:k]
            triplets = [x for x in triplets if x[:2] in gt_pairs][:k]
            found += len(hit_relations(p, t, triplets, iou_thr, plus_one))
            total += len(t['relations'])
        result[f'{prefix}A@{k}'] = found / total if total else math.nan
    return result


# Coarse grids make equal scores, equal boxes and IoUs at the threshold common.
coords = st.integers(0, 4)
score = st.sampled_from([0.0, 0.25, 0.5, 1.0])


@st.composite
def boxes_and_labels(draw, min_size=0):
    n = draw(st.integers(min_size, 4))
    boxes = []
    for _ in range(n):
        x, y, w, h = draw(coords), draw(coords), draw(st.integers(0, 4)), draw(st.integers(1, 4))
        boxes.append((x, y, x + w, y + h))
    return boxes, [draw(st.integers(0, NUM_CLASSES - 1)) for _ in range(n)]


@st.composite
def images(draw):
    boxes, labels = draw(boxes_and_labels())
    n = len(boxes)
    relations = []
    if n:
        index, predicate = st.integers(0, n - 1), st.integers(0, NUM_PREDICATES - 1)
        relations = draw(st.lists(st.tuples(index, index, predicate), max_size=4))
    truth = dict(bboxes=boxes, labels=labels, relations=relations)
    if not draw(st.booleans()):  # else PredCls: boxes and labels are from the ground truth
        boxes, labels = draw(boxes_and_labels())
    n = len(boxes)
    pairs = []
    if n:
        index = st.integers(0, n - 1)
        pairs = draw(st.lists(st.tuples(index, index), max_size=5))
    prediction = dict(
        bboxes=boxes,
        labels=labels,
        scores=[draw(score) for _ in range(n)],
        pairs=pairs,
        rel_scores=[[draw(score) for _ in range(NUM_PREDICATES)] for _ in pairs],
    )
    return prediction, truth


triplet = st.tuples(
    st.integers(0, NUM_CLASSES - 1),
    st.integers(0, NUM_CLASSES - 1),
    st.integers(0, NUM_PREDICATES - 1),
)


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    data=st.lists(images(), max_size=4),
    iou_thr=st.sampled_from([0.3, 0.5, 1.0]),
    plus_one=st.booleans(),
    empty_pred=st.sampled_from(['zero', 'skip']),
    average=st.sampled_from(['image', 'pooled']),
    unseen=st.sets(triplet, max_size=6),
    per_pair=st.sampled_from([None, 1, 2]),
    absent=st.sampled_from(['zero', 'skip']),
    first=st.sampled_from(['filter', 'cut']),
)
def test_recall_equals_reference_on_random_images(
    data, iou_thr, plus_one, empty_pred, average, unseen, per_pair, absent, first
):
    predictions, truths = [p for p, _ in data], [t for _, t in data]
    ks = (1, 2, 5)
    expected = reference(
        *(predictions, truths, ks, iou_thr, plus_one, empty_pred, average, unseen, per_pair),
        *(absent, first),
    )
    actual = scene_graph_recall(
        predictions,
        truths,
        ks,
        iou_thr,
        num_predicates=NUM_PREDICATES,
        iou_plus_one=plus_one,
        empty_pred=empty_pred,
        average=average,
        zero_shot_triplets=unseen,
        predicates_per_pair=per_pair,
        absent=absent,
        pair_accuracy=first,
    )
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        assert actual[key] == pytest.approx(value, nan_ok=True), key


def test_recall_equals_reference_on_crowded_image():
    rng = np.random.default_rng(0)
    predictions, truths = [], []
    for _ in range(3):
        corner = rng.uniform(0, 60, (12, 2))
        gt_boxes = np.hstack((corner, corner + rng.uniform(5, 30, (12, 2))))
        gt_labels = rng.integers(0, NUM_CLASSES, 12)
        relations = rng.integers(0, [12, 12, NUM_PREDICATES], (10, 3))
        truths.append(dict(bboxes=gt_boxes, labels=gt_labels, relations=relations))
        order = rng.integers(0, 12, 20)
        predictions.append(
            dict(
                bboxes=gt_boxes[order] + rng.normal(0, 1.5, (20, 4)),
                labels=gt_labels[order],
                scores=rng.uniform(size=20),
                pairs=np.array(list(itertools.permutations(range(20), 2))),
                rel_scores=rng.uniform(size=(380, NUM_PREDICATES)),
            )
        )
    as_lists = [{k: v.tolist() for k, v in d.items()} for d in predictions]
    gt_lists = [
        {k: [tuple(r) for r in v.tolist()] if v.ndim > 1 else v.tolist() for k, v in d.items()}
        for d in truths
    ]
    for p in as_lists:
        p['pairs'] = [tuple(pair) for pair in p['pairs']]
    ks = (5, 50, 200)
    expected = reference(
        *(as_lists, gt_lists, ks, 0.5, False, 'zero', 'image', set(), None, 'zero', 'filter')
    )
    actual = scene_graph_recall(predictions, truths, ks, zero_shot_triplets=set())
    assert 0 < actual['R@200'] < 1
    for key, value in expected.items():
        assert actual[key] == pytest.approx(value, nan_ok=True), key
