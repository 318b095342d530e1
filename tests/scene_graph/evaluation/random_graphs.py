"""Scene graphs with random content, the input of the recorded figures in ``evaluators.json``.

``numpy.random.RandomState`` gives the same numbers under every NumPy release.
"""

from __future__ import annotations

import itertools

import numpy as np

NUM_IMAGES, NUM_CLASSES, NUM_PREDICATES = 40, 4, 12
#: The ground truth has none of these.
ABSENT = (3, 7, 8, 11)
#: An image without relations, and one without predicted pairs.
NO_RELATIONS, NO_PAIRS = 5, 9
GROUPS = dict(head=[0, 1, 3], body=[2, 4, 5, 7, 8], tail=[6, 9, 10, 11])


def zero_shot() -> set[tuple[int, int, int]]:
    """Every third (subject class, object class, predicate)."""
    sizes = (range(NUM_CLASSES), range(NUM_CLASSES), range(NUM_PREDICATES))
    return set(itertools.islice(itertools.product(*sizes), 0, None, 3))


def random_graphs(protocol: str) -> tuple[list[dict], list[dict]]:
    """Predictions and ground truth of all images, in the form of ``scene_graph_recall``.

    Boxes and scores are multiples of powers of two that float32 can hold, no two triplets of an
    image have the same score, and the pairs of an image are sorted by the score of their best
    predicate: some evaluators rely on it.

    Args:
        protocol: 'predcls' (boxes and labels of the ground truth, scores 1), 'sgcls' (boxes of the
            ground truth) or 'sgdet'.
    """
    rng = np.random.RandomState(7)
    present = [p for p in range(NUM_PREDICATES) if p not in ABSENT]
    predictions, truths = [], []
    for image in range(NUM_IMAGES):
        count = rng.randint(3, 9)
        corner = rng.randint(0, 300, (count, 2))
        boxes = np.hstack((corner, corner + rng.randint(12, 120, (count, 2)))).astype(np.float64)
        labels = rng.randint(0, NUM_CLASSES, count)
        ends = np.array(list(itertools.permutations(range(count), 2)))
        chosen = ends[rng.randint(0, len(ends), rng.randint(2, 9))]
        # Squared: the first predicates are frequent, the last ones rare.
        drawn = (rng.random_sample(len(chosen)) ** 2 * len(present)).astype(int)
        relations = np.column_stack((chosen, np.array(present)[drawn]))
        relations = np.vstack((relations, relations[: image % 2]))  # sometimes one twice
        pred_boxes, pred_labels, scores = boxes, labels, np.ones(count)
        if protocol != 'predcls':
            wrong = rng.random_sample(count) < 0.15
            pred_labels = np.where(wrong, rng.randint(0, NUM_CLASSES, count), labels)
            scores = rng.randint(40, 64, count) / 64
        if protocol == 'sgdet':
            order = rng.randint(0, count, count + 3)
            pred_boxes = boxes[order] + np.round(rng.randn(len(order), 4) * 5)
            pred_boxes[:, 2:] = np.maximum(pred_boxes[:, 2:], pred_boxes[:, :2] + 4)
            pred_labels, scores = pred_labels[order], rng.randint(20, 64, len(order)) / 64
        pairs = np.array(list(itertools.permutations(range(len(pred_boxes)), 2)))
        logits = rng.randn(len(pairs), NUM_PREDICATES) * 1.5
        where = {(s, o): i for i, (s, o) in enumerate(pairs.tolist())}
        if protocol == 'sgdet':
            source = {int(b): a for a, b in enumerate(order)}
        for subject, object_, predicate in relations.tolist():
            if protocol == 'sgdet':
                subject, object_ = source.get(subject, -1), source.get(object_, -1)
            if (subject, object_) in where:
                logits[where[subject, object_], predicate] += 4
        exp = np.exp(logits - logits.max(1, keepdims=True))
        rel_scores = exp / (exp.sum(1, keepdims=True) + 20)
        best = scores[pairs].prod(1) * rel_scores.max(1)
        keep = np.argsort(-best, kind='stable')[: 0 if image == NO_PAIRS else None]
        predictions.append(
            dict(
                bboxes=pred_boxes,
                labels=pred_labels,
                scores=scores,
                pairs=pairs[keep],
                rel_scores=rel_scores[keep].astype(np.float32).astype(np.float64),
            )
        )
        if image == NO_RELATIONS:
            relations = relations[:0]
        truths.append(dict(bboxes=boxes, labels=labels, relations=relations))
    return predictions, truths
