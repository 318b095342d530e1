"""The recall family of scene-graph generation (pure NumPy): R, mR, ngR, ngmR, A, zR, F1, phrR.

Sources:

- R@K: Lu et al., Visual Relationship Detection with Language Priors, arXiv 1608.00187, and Xu et
  al., Scene Graph Generation by Iterative Message Passing, arXiv 1701.02426.
- Without the graph constraint (ng): Newell and Deng, arXiv 1706.07365; named by Zellers et al.,
  Neural Motifs, arXiv 1711.06640.
- Mean R@K: Tang et al., VCTree, arXiv 1812.01880; Chen et al., KERN, arXiv 1903.03326.
- F1@K: Zhang et al., Fine-Grained Scene Graph Generation with Data Transfer, arXiv 2203.11654.
- Head, body and tail: Li et al., Bipartite Graph Network, arXiv 2104.00308.
- Pair accuracy A@K: Zhang et al., Graphical Contrastive Losses, arXiv 1903.02728.
- Zero-shot: Lu et al., arXiv 1608.00187; Tang et al., arXiv 2002.11949.
- Phrase detection: Lu et al., arXiv 1608.00187.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .matching import RANKS, ImageMatch, match_image
from .options import CONVENTIONS, OPTIONS, RecallOptions, check_ks

__all__ = ['CONVENTIONS', 'as_triplet_set', 'predicate_recall', 'scene_graph_recall', 'summarize']

Groups = Mapping[str, Sequence[int]]


def scene_graph_recall(
    predictions: Iterable[Mapping[str, np.ndarray]],
    ground_truths: Iterable[Mapping[str, np.ndarray]],
    ks: Sequence[int] = (20, 50, 100),
    iou_thr: float = 0.5,
    *,
    num_predicates: int | None = None,
    zero_shot_triplets: Collection[tuple[int, int, int]] | None = None,
    predicate_groups: Groups | None = None,
    **options: Any,
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

    **Absent predicates.** ``mR@K`` divides by all ``num_predicates`` predicates, and one without
    ground truth in the counted images has recall 0: every public evaluator does so
    (``absent='zero'``). ``absent='skip'`` divides by the others only, and gives a larger figure
    that cannot be compared with published ones. A mean over an empty set is NaN.

    ``F1@K`` is the harmonic mean of ``R@K`` and ``mR@K``.

    **Pair accuracy** ``A@K`` ranks, among the predicted pairs, only those that are ground-truth
    pairs, and is pooled under both averages, as published. Ground-truth pairs are identified by
    index, so ``A@K`` is meaningful only if predicted box i is ground-truth box i, as in PredCls and
    SGCls.

    **Phrase detection** ``phrR@K`` and so on: a triplet hits if its three classes are equal and
    the box around subject and object has IoU >= ``iou_thr`` with the annotated one.

    Args:
        predictions: A dict per image with ``bboxes`` (N, 4) xyxy, ``labels`` (N,) int, ``scores``
            (N,), ``pairs`` (M, 2) int indices of subject and object, ``rel_scores`` (M, P)
            without background. Any order; not modified. Iterators are consumed one image at a
            time.
        ground_truths: A dict per image with ``bboxes`` (G, 4), ``labels`` (G,) int, ``relations``
            (R, 3) int: index of the subject, index of the object, predicate, all 0-based.
        ks: Values of K in R@K.
        iou_thr: Minimum IoU (inclusive) of matching boxes.
        num_predicates: P. None: the number of columns of ``rel_scores``, and without any
            prediction the largest label plus 1.
        zero_shot_triplets: Set of (subject class, object class, predicate) triplets that do not
            occur in training. Adds ``zR@K`` and ``ngzR@K``: recall of these relations only, over
            the images that have one.
        predicate_groups: Name -> predicate labels, such as
            ``dict(head=[0, 3], body=[1], tail=[2])``. Adds ``head_mR@K`` and so on: the mean
            recall over the predicates of the group.
        **options: Fields of :class:`~gclip_mm.scene_graph.evaluation.RecallOptions`
            (``iou_plus_one``, ``empty_pred``, ``average``, ``absent``, ``pair_accuracy``,
            ``predicates_per_pair``, ``min_score``, ``phrase``, ``ng_average``,
            ``ng_empty_pred``), or a published convention, as in the example.

    Returns:
        ``R@K``, ``mR@K``, ``F1@K``, ``ngR@K``, ``ngmR@K``, ``A@K``, ``ngA@K`` for each K;
        ``zR@K`` and ``ngzR@K`` if ``zero_shot_triplets`` is given; ``<group>_mR@K`` with
        ``predicate_groups``; ``phrR@K``, ``phrmR@K``, ``ngphrR@K`` and ``ngphrmR@K`` with
        ``phrase``. Floats in [0, 1] or NaN.

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
    checked = _options(options)
    ks = check_ks(ks, iou_thr)
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
                zero_shot_triplets=zero_shot,
                options=checked,
                name=f'image {i}',
            )
        )
    if next(gts, end) is not end:
        raise ValueError(f'there are more ground_truths than predictions ({len(matches)})')
    return summarize(
        matches,
        ks,
        checked,
        num_predicates=num_predicates,
        zero_shot=zero_shot is not None,
        predicate_groups=predicate_groups,
    )


def _options(options: Mapping[str, Any]) -> RecallOptions:
    unknown = sorted(set(options) - set(OPTIONS))
    if unknown:
        raise ValueError(f'unknown option {unknown[0]!r}; the valid ones are {OPTIONS}')
    return RecallOptions(**options)


def summarize(
    matches: Sequence[ImageMatch],
    ks: Sequence[int],
    options: RecallOptions | None = None,
    *,
    num_predicates: int | None = None,
    zero_shot: bool = False,
    predicate_groups: Groups | None = None,
) -> dict[str, float]:
    """Compute recall from matched images; arguments and result as in :func:`scene_graph_recall`.

    Raises:
        ValueError: A group is empty or names a label that is not a predicate.
    """
    options = options or RecallOptions()
    count = _num_predicates(matches, num_predicates)
    groups = _checked_groups(predicate_groups or {}, count)
    result = {}
    for constraint, prefix in ((True, ''), (False, 'ng')):
        average, empty_pred = options.averaging(constraint)
        pool = _pool(matches, empty_pred)
        ranks = {'': 'rank' if constraint else 'rank_ng'}
        if options.phrase:
            ranks['phr'] = 'rank_phr' if constraint else 'rank_phr_ng'
        for kind, field in ranks.items():
            for k in ks:
                hit = pool[field] < k
                name = f'{prefix}{kind}'
                result[f'{name}R@{k}'] = _recall(hit, pool['image'], average)
                terms = _predicate_recall(hit, pool, average, count)
                result[f'{name}mR@{k}'] = _over_predicates(terms, options.absent)
                if kind:
                    continue
                if constraint:
                    result[f'F1@{k}'] = _harmonic(result[f'R@{k}'], result[f'mR@{k}'])
                    for group, labels in groups.items():
                        value = _over_predicates(terms[labels], options.absent, len(hit) > 0)
                        result[f'{group}_mR@{k}'] = value
                if zero_shot:
                    seen = pool['zero_shot']
                    result[f'{name}zR@{k}'] = _recall(hit[seen], pool['image'][seen], average)
        field = 'rank_pair' if constraint else 'rank_pair_ng'
        for k in ks:
            result[f'{prefix}A@{k}'] = _mean(pool[field] < k)
    return result


def _num_predicates(matches: Sequence[ImageMatch], given: int | None) -> int:
    if given is not None:
        return given
    columns = max((match.num_predicates for match in matches), default=0)
    labels = max((int(m.predicates.max()) + 1 for m in matches if len(m.predicates)), default=0)
    return max(columns, labels)


def _checked_groups(groups: Groups, num_predicates: int) -> dict[str, np.ndarray]:
    checked = {}
    for name, labels in groups.items():
        array = np.asarray(labels)
        valid = array.ndim == 1 and array.size and np.issubdtype(array.dtype, np.integer)
        if not valid or array.min() < 0 or array.max() >= num_predicates:
            raise ValueError(
                f'predicate_groups[{name!r}] must hold labels in [0, {num_predicates}), '
                f'got {labels}'
            )
        checked[name] = array
    return checked


def _over_predicates(terms: np.ndarray, absent: str, any_relation: bool | None = None) -> float:
    """Mean over predicates whose recall may be NaN, which means absent."""
    present = terms[~np.isnan(terms)]
    if absent == 'skip' or not (len(present) or any_relation):
        return _mean(present)
    return float(present.sum() / len(terms))


def _harmonic(a: float, b: float) -> float:
    return 0.0 if a + b == 0 else 2 * a * b / (a + b)


def predicate_recall(
    matches: Sequence[ImageMatch],
    ks: Sequence[int],
    num_predicates: int,
    options: RecallOptions | None = None,
) -> dict[str, np.ndarray]:
    """Recall of each predicate; their mean is ``mR@K``.

    Returns:
        ``R@K`` and ``ngR@K`` for each K: (num_predicates,) float64, NaN without ground truth;
        and ``count``: (num_predicates,) int64, number of relations.
    """
    options = options or RecallOptions()
    result = {}
    for constraint, prefix, field in ((True, '', 'rank'), (False, 'ng', 'rank_ng')):
        average, empty_pred = options.averaging(constraint)
        pool = _pool(matches, empty_pred)
        if constraint:
            result['count'] = np.bincount(pool['predicates'], minlength=num_predicates)
        for k in ks:
            hit = pool[field] < k
            result[f'{prefix}R@{k}'] = _predicate_recall(hit, pool, average, num_predicates)
    return result


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
    for field in ('predicates', 'zero_shot', *RANKS):
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
    hit: np.ndarray, pool: dict[str, np.ndarray], average: str, num_predicates: int
) -> np.ndarray:
    predicates = pool['predicates']
    if average == 'pooled':
        return _group_means(hit, predicates, num_predicates)
    # Average within (image, predicate), then over the images that have the predicate.
    cells, cell = np.unique(pool['image'] * num_predicates + predicates, return_inverse=True)
    return _group_means(
        _group_means(hit, cell.ravel(), len(cells)), cells % max(num_predicates, 1), num_predicates
    )
