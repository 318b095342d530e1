"""Random panoptic pictures and predictions, the same on every machine."""

from __future__ import annotations

import numpy as np

HEIGHT, WIDTH = 30, 40
NUM_CLASSES, NUM_PREDICATES = 3, 4


def random_picture(seed: int) -> tuple[dict, dict, np.ndarray]:
    """Ground truth and prediction with boxes, as for ``scene_graph_recall``, and predicted masks.

    The ground truth has ``segments`` (H, W), whose ids are 1 + the index of the object. Predicted
    masks (N, H, W) are true ones, shifted, some of them several times, so that they overlap. Rows
    of ``pairs`` are sorted by score, the best first.
    """
    rng = np.random.default_rng(seed)
    points = rng.uniform(0, 1, (6, 2)) * (HEIGHT, WIDTH)
    grid = np.stack(np.mgrid[:HEIGHT, :WIDTH], axis=-1)
    segments = 1 + np.square(grid[:, :, None] - points).sum(-1).argmin(-1)
    masks = segments[None] == np.unique(segments)[:, None, None]
    segments = 1 + masks.argmax(0)
    count = len(masks)
    labels = rng.integers(NUM_CLASSES, size=count)
    ends = rng.permutation([(i, j) for i in range(count) for j in range(count) if i != j])[:6]
    relations = np.column_stack((ends, rng.integers(NUM_PREDICATES, size=len(ends))))
    truth = dict(bboxes=boxes_of(masks), labels=labels, relations=relations, segments=segments)

    source = np.concatenate((np.arange(count), rng.integers(count, size=4)))
    predicted = np.stack(
        [np.roll(masks[i], tuple(rng.integers(-3, 4, 2)), axis=(0, 1)) for i in source]
    )
    wrong = rng.uniform(size=len(source)) < 0.15
    found = np.where(wrong, rng.integers(NUM_CLASSES, size=len(source)), labels[source])
    scores = rng.uniform(0.5, 1, len(source))
    pairs = np.array([(i, j) for i in range(len(source)) for j in range(len(source)) if i != j])
    rel_scores = rng.uniform(0, 0.5, (len(pairs), NUM_PREDICATES))
    for row, (i, j) in enumerate(pairs):
        for s, o, predicate in relations:
            if (source[i], source[j]) == (s, o) and rng.uniform() < 0.6:
                rel_scores[row, predicate] += 0.5
    order = np.argsort(-scores[pairs].prod(1) * rel_scores.max(1), kind='stable')
    prediction = dict(
        bboxes=boxes_of(predicted),
        labels=found,
        scores=scores,
        pairs=pairs[order],
        rel_scores=rel_scores[order],
    )
    return truth, prediction, predicted


def boxes_of(masks: np.ndarray) -> np.ndarray:
    """(N, 4) xyxy around masks (N, H, W) that are not empty."""
    boxes = []
    for mask in masks:
        y, x = np.nonzero(mask)
        boxes.append([x.min(), y.min(), x.max() + 1, y.max() + 1])
    return np.array(boxes, np.float64)
