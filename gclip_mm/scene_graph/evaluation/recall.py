"""The recall family of scene-graph generation: R@K, mR@K, ngR@K, ngmR@K, A@K, zR@K (pure NumPy).

Sources:

- R@K: Lu et al., Visual Relationship Detection with Language Priors, arXiv 1608.00187, and Xu et
  al., Scene Graph Generation by Iterative Message Passing, arXiv 1701.02426.
- Without the graph constraint (ng): Newell and Deng, arXiv 1706.07365; named by Zellers et al.,
  Neural Motifs, arXiv 1711.06640.
- Mean R@K: Tang et al., VCTree, arXiv 1812.01880; Chen et al., KERN, arXiv 1903.03326.
- Pair accuracy A@K: Zhang et al., Graphical Contrastive Losses, arXiv 1903.02728.
- Zero-shot: Lu et al., arXiv 1608.00187; Tang et al., arXiv 2002.11949.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .matching import ImageMatch, match_image

EMPTY_PRED = ('zero', 'skip')
AVERAGE = ('image', 'pooled')

#: Published conventions, as keyword arguments of :func:`scene_graph_recall`.
#:
#: - ``vg150``: the code behind most VG150 tables (Tang et al., arXiv 2002.11949).
#: - ``motifs``: Neural Motifs and KERN. Differs for images without predictions.
#: - ``psg``: OpenPSG (Yang et al., arXiv 2207.11247), evaluated on boxes.
#: - ``openimages``: Open Images VRD (Zhang et al., arXiv 1903.02728): one pool of relations;
#:   the two best predicates of a pair compete in ngR@K, which that literature calls R@50.
CONVENTIONS: dict[str, dict[str, Any]] = {
    'vg150': dict(iou_plus_one=True, empty_pred='skip', average='image'),
    'motifs': dict(iou_plus_one=True, empty_pred='zero', average='image'),
    'psg': dict(iou_plus_one=False, empty_pred='skip', average='image'),
    'openimages': dict(
        iou_plus_one=True, empty_pred='zero', average='pooled', predicates_per_pair=2
    ),
}


def scene_graph_recall(
    predictions: Iterable[Mapping[str, np.ndarray]],
    ground_truths: Iterable[Mapping[str, np.ndarray]],
    ks: Sequence[int] = (20, 50, 100),
    iou_thr: float = 0.5,
    *,
    num_predicates: int | None = None,
    iou_plus_one: bool = False,
    empty_pred: str = 'zero',
    average: str = 'image',
    zero_shot_triplets: Collection[tuple[int, int, int]] | None = None,
    predicates_per_pair: int | None = None,
) -> dict[str, float]:
    """Evaluate scene graphs, one prediction and one ground truth for each image.

    **Matching.** A triplet hits a ground-truth relation when subject class, object class and
    predicate are equal and both boxes have IoU >= ``iou_thr``. A triplet may hit several
    relations; a relation counts once however many triplets hit it. A relation listed twice in
    the ground truth counts twice, as published.

    **Ranking.** The score of a triplet is subject score x object score x predicate score. Under
    the *graph constraint* (``R``, ``mR``, ``zR``, ``A``) a pair has one triplet, that of its best
    predicate. A repeated entry in ``pairs`` keeps its rank but cannot hit; otherwise repetition
    would circumvent the constraint. *Without* the constraint (``ng``) all predicates of all pairs
    compete. Ties are broken by position: the lower row of ``pairs`` first, within a row the lower
    predicate index. Results therefore do not depend on the platform's sort.

    **Averaging.** Images without ground-truth relations are not counted.

    - ``average='image'``: ``R@K`` is the mean over images of the share of the image's relations
      hit by its first K triplets. ``mR@K`` computes that share for the relations of each
      predicate, averages it over the images that have the predicate, then averages over
      predicates (VCTree, KERN).
    - ``average='pooled'``: hits over relations of the whole set; ``mR@K`` is the mean over
      predicates of hits over relations of that predicate.

    ``mR@K`` ignores predicates without ground truth in the counted images. A mean over an empty
    set is NaN.

    **Pair accuracy** ``A@K`` ranks, among the predicted pairs, only those that are ground-truth
    pairs, and is pooled under both averages, as published. Ground-truth pairs are identified by
    index, so ``A@K`` is meaningful only if predicted box i is ground-truth box i, as in PredCls and
    SGCls.

    Args:
        predictions: A dict per image with ``bboxes`` (N, 4) xyxy, ``labels`` (N,) int, ``scores``
            (N,), ``pairs`` (M, 2) int indices of subject and object, ``rel_scores`` (M, P)
            without background. Any order; not modified. Iterators are consumed one image at a
            time.
        ground_truths: A dict per image with ``bboxes`` (G, 4), ``labels`` (G,) int, ``relations``
            (R, 3) int: index of the subject, index of the object, predicate, all 0-based.
        ks: Values of K in R@K.
        iou_thr: Minimum IoU (inclusive) of matching boxes.
        num_predicates: P. None: taken from the data.
        iou_plus_one: Compute widths and heights as ``x2 - x1 + 1``.
        empty_pred: An image with relations but no predicted pair counts as 0 (``'zero'``) or is
            ignored (``'skip'``).
        average: ``'image'`` or ``'pooled'``, see above.
        zero_shot_triplets: Set of (subject class, object class, predicate) triplets that do not
            occur in training. Adds ``zR@K`` and ``ngzR@K``: recall of these relations only, over
            the images that have one.
        predicates_per_pair: Number of predicates of a pair that compete without the graph
            constraint. None: all.

    Returns:
        ``R@K``, ``mR@K``, ``ngR@K``, ``ngmR@K``, ``A@K`` for each K, ``zR@K`` and ``ngzR@K`` if
        ``zero_shot_triplets`` is given; floats in [0, 1] or NaN.

    Raises:
        ValueError: An option is unknown, the lists differ in length, or an array has a wrong
            shape, holds NaN or an index out of range. The message names the image and the key.

    Example:
        >>> gt = dict(bboxes=[[0, 0, 9, 9], [20, 0, 29, 9]], labels=[0, 1], relations=[[0, 1, 2]])
        >>> pred = dict(bboxes=gt['bboxes'], labels=gt['labels'], scores=[1., 1.],
        ...             pairs=[[0, 1], [1, 0]], rel_scores=[[.1, .2, .7], [.8, .1, .1]])
        >>> scene_graph_recall([pred], [gt], ks=(1, 2))['R@1'], \\
        ...     scene_graph_recall([pred], [gt], ks=(1, 2))['R@2']
        (0.0, 1.0)
        >>> result = scene_graph_recall([pred], [gt], **CONVENTIONS['vg150'])
    """
    ks = check_options(ks, iou_thr, empty_pred, average, predicates_per_pair)
    zero_shot = as_triplet_set(zero_shot_triplets)
    matches = []
    end: Any = object()
    gts = iter(ground_truths)
    for i, prediction in enumerate(predictions):
        ground_truth = next(gts, end)
        if ground_truth is end:
            raise ValueError(f'there are more predictions than ground_truths ({i})')
        matches.append(
            match_image(
                prediction,
                ground_truth,
                max_k=max(ks),
                iou_thr=iou_thr,
                num_predicates=num_predicates,
                iou_plus_one=iou_plus_one,
                zero_shot_triplets=zero_shot,
                predicates_per_pair=predicates_per_pair,
                name=f'image {i}',
            )
        )
    if next(gts, end) is not end:
        raise ValueError(f'there are more ground_truths than predictions ({len(matches)})')
    return summarize(
        matches, ks, empty_pred=empty_pred, average=average, zero_shot=zero_shot is not None
    )


def summarize(
    matches: Sequence[ImageMatch],
    ks: Sequence[int],
    *,
    empty_pred: str = 'zero',
    average: str = 'image',
    zero_shot: bool = False,
) -> dict[str, float]:
    """Compute recall from matched images; arguments and result as in :func:`scene_graph_recall`."""
    pool = _pool(matches, empty_pred)
    result = {}
    for prefix, rank in (('', pool['rank']), ('ng', pool['rank_ng'])):
        for k in ks:
            hit = rank < k
            result[f'{prefix}R@{k}'] = _recall(hit, pool['image'], average)
            per_predicate = _predicate_recall(hit, pool, average)
            result[f'{prefix}mR@{k}'] = _mean(per_predicate[~np.isnan(per_predicate)])
            if zero_shot:
                seen = pool['zero_shot']
                result[f'{prefix}zR@{k}'] = _recall(hit[seen], pool['image'][seen], average)
    for k in ks:
        result[f'A@{k}'] = _mean(pool['rank_pair'] < k)
    return result


def predicate_recall(
    matches: Sequence[ImageMatch],
    ks: Sequence[int],
    num_predicates: int,
    *,
    empty_pred: str = 'zero',
    average: str = 'image',
) -> dict[str, np.ndarray]:
    """Recall of each predicate; their mean is ``mR@K``.

    Returns:
        ``R@K`` and ``ngR@K`` for each K: (num_predicates,) float64, NaN without ground truth;
        and ``count``: (num_predicates,) int64, number of relations.
    """
    pool = _pool(matches, empty_pred)
    result = {'count': np.bincount(pool['predicates'], minlength=num_predicates)}
    for prefix, rank in (('', pool['rank']), ('ng', pool['rank_ng'])):
        for k in ks:
            result[f'{prefix}R@{k}'] = _predicate_recall(rank < k, pool, average, num_predicates)
    return result


def check_options(
    ks: Sequence[int] | int,
    iou_thr: float,
    empty_pred: str,
    average: str,
    predicates_per_pair: int | None,
) -> tuple[int, ...]:
    """Validate the options and return ``ks`` as a tuple of ints.

    Raises:
        ValueError: An option is invalid; the message gives the valid values.
    """
    values = (ks,) if isinstance(ks, int | np.integer) else tuple(ks)
    if not values or any(int(k) != k or k < 1 for k in values):
        raise ValueError(f'ks must be positive integers, got {values}')
    if not 0 < iou_thr <= 1:
        raise ValueError(f'iou_thr must be in (0, 1], got {iou_thr}')
    if empty_pred not in EMPTY_PRED:
        raise ValueError(f'empty_pred must be one of {EMPTY_PRED}, got {empty_pred!r}')
    if average not in AVERAGE:
        raise ValueError(f'average must be one of {AVERAGE}, got {average!r}')
    if predicates_per_pair is not None and predicates_per_pair < 1:
        raise ValueError(f'predicates_per_pair must be None or >= 1, got {predicates_per_pair}')
    return tuple(int(k) for k in values)


def as_triplet_set(triplets: Collection | None) -> frozenset[tuple[int, int, int]] | None:
    """Convert a collection of int triplets, such as a (Z, 3) array, to a set of tuples."""
    if triplets is None:
        return None
    if any(len(triplet) != 3 for triplet in triplets):
        raise ValueError(
            'zero_shot_triplets must hold (subject class, object class, predicate) triplets'
        )
    return frozenset((int(s), int(o), int(p)) for s, o, p in triplets)


def _pool(matches: Sequence[ImageMatch], empty_pred: str) -> dict[str, np.ndarray]:
    """Concatenate the fields of all counted images; ``image`` is each relation's image index."""
    if empty_pred == 'skip':
        matches = [m for m in matches if m.has_pairs]
    sizes = [len(m.predicates) for m in matches]
    pool = {'image': np.repeat(np.arange(len(matches)), sizes)}
    for field in ('predicates', 'zero_shot', 'rank', 'rank_ng', 'rank_pair'):
        dtype = bool if field == 'zero_shot' else np.int64
        arrays = [np.asarray(getattr(m, field), dtype) for m in matches]
        pool[field] = np.concatenate(arrays) if arrays else np.zeros(0, dtype)
    return pool


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else float('nan')


def _group_means(values: np.ndarray, groups: np.ndarray, num_groups: int) -> np.ndarray:
    """(num_groups,) mean of the values of each group, NaN for an empty group."""
    count = np.bincount(groups, minlength=num_groups)
    total = np.bincount(groups, weights=values, minlength=num_groups)
    return np.divide(total, count, out=np.full(num_groups, np.nan), where=count > 0)


def _recall(hit: np.ndarray, image: np.ndarray, average: str) -> float:
    if average == 'pooled' or not len(hit):
        return _mean(hit)
    means = _group_means(hit, image, int(image[-1]) + 1)
    return _mean(means[~np.isnan(means)])


def _predicate_recall(
    hit: np.ndarray, pool: dict[str, np.ndarray], average: str, num_predicates: int | None = None
) -> np.ndarray:
    predicates = pool['predicates']
    if num_predicates is None:
        num_predicates = int(predicates.max()) + 1 if len(predicates) else 0
    if average == 'pooled':
        return _group_means(hit, predicates, num_predicates)
    # Average within (image, predicate), then over the images that have the predicate.
    cells, cell = np.unique(pool['image'] * num_predicates + predicates, return_inverse=True)
    return _group_means(
        _group_means(hit, cell.ravel(), len(cells)), cells % max(num_predicates, 1), num_predicates
    )
