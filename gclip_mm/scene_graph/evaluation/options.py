"""Options of the recall metrics, and the published conventions (pure NumPy)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from ..boxes import PLUS_ONE

_VALUES: dict[str, tuple] = {
    'iou_plus_one': PLUS_ONE,
    'empty_pred': ('zero', 'skip'),
    'average': ('image', 'pooled'),
    'absent': ('zero', 'skip'),
    'pair_accuracy': ('filter', 'cut'),
}
#: Options that may differ without the graph constraint, where None stands for the same value.
_NG = {'ng_average': 'average', 'ng_empty_pred': 'empty_pred'}


@dataclass(frozen=True)
class RecallOptions:
    """What differs between published evaluators; see :func:`scene_graph_recall`.

    Args:
        iou_plus_one: Compute widths and heights as ``x2 - x1 + 1``. ``'intersection'``: only
            those of the intersection.
        empty_pred: An image with relations but no predicted pair counts as 0 (``'zero'``) or is
            ignored (``'skip'``).
        average: ``'image'`` or ``'pooled'``.
        absent: In a mean over predicates, a predicate without ground truth counts as 0
            (``'zero'``) or is ignored (``'skip'``).
        pair_accuracy: ``'filter'``: A@K ranks ground-truth pairs only. ``'cut'``: A@K takes the
            first K triplets and drops those of other pairs.
        predicates_per_pair: Number of predicates of a pair that compete without the graph
            constraint. None: all.
        min_score: Triplets that score at most this are dropped without the graph constraint.
            None: all are kept.
        phrase: Also report phrase detection: the union of subject and object has to match, in
            place of both boxes.
        ng_average, ng_empty_pred: ``average`` and ``empty_pred`` without the graph constraint.
            None: the same as with it.

    Raises:
        ValueError: A value is not valid; the message lists the valid ones.
    """

    iou_plus_one: bool | str = False
    empty_pred: str = 'zero'
    average: str = 'image'
    absent: str = 'zero'
    pair_accuracy: str = 'filter'
    predicates_per_pair: int | None = None
    min_score: float | None = None
    phrase: bool = False
    ng_average: str | None = None
    ng_empty_pred: str | None = None

    def __post_init__(self) -> None:
        for key, valid in _VALUES.items():
            if getattr(self, key) not in valid:
                raise ValueError(f'{key} must be one of {valid}, got {getattr(self, key)!r}')
        for key, base in _NG.items():
            value = getattr(self, key)
            if value is not None and value not in _VALUES[base]:
                raise ValueError(f'{key} must be None or one of {_VALUES[base]}, got {value!r}')
        number = self.predicates_per_pair
        if number is not None and number < 1:
            raise ValueError(f'predicates_per_pair must be None or >= 1, got {number}')
        if self.min_score is not None and not self.min_score >= 0:
            raise ValueError(f'min_score must be None or >= 0, got {self.min_score}')

    def averaging(self, constraint: bool) -> tuple[str, str]:
        """``average`` and ``empty_pred`` with or without the graph constraint."""
        if constraint:
            return self.average, self.empty_pred
        return self.ng_average or self.average, self.ng_empty_pred or self.empty_pred


#: Names of the options.
OPTIONS = tuple(field.name for field in fields(RecallOptions))

#: Published conventions, as keyword arguments of :func:`scene_graph_recall`. Each does what the
#: named evaluators do; ``docs/scene_graph_metrics.md`` compares them figure by figure.
#:
#: - ``vg150``: Scene-Graph-Benchmark (Tang et al., arXiv 2002.11949) and PySGG (Li et al.,
#:   arXiv 2104.00308), the code behind most VG150 tables.
#: - ``motifs``: Neural Motifs (arXiv 1711.06640), KERN (1903.03326), RelTR (2201.11460) and EGTR
#:   (2404.02072). Differs for images without predictions.
#: - ``sgg_benchmark``: SGG-Benchmark (Neau et al., REACT, arXiv 2405.16116). As ``motifs``, but
#:   A@K cuts before it filters, and the areas of boxes exclude the last pixel.
#: - ``psg``: OpenPSG (Yang et al., arXiv 2207.11247), evaluated on boxes.
#: - ``openimages``: Open Images VRD in PySGG, after Zhang et al. (arXiv 1903.02728). R and mR are
#:   those of ``vg150``. ngR@K, which that literature calls R@K, is pooled, and the two best
#:   predicates of a pair compete; :class:`OpenImagesVRDMetric` reports it with the APs.
#: - ``vrd``: VRD (Lu et al., arXiv 1608.00187) as evaluated by Zhang et al.: one pool of relations.
#:   R@K has one predicate a pair (k = 1), ngR@K all 70; phrR@K is phrase detection.
CONVENTIONS: dict[str, dict[str, Any]] = {
    'vg150': dict(iou_plus_one=True, empty_pred='skip'),
    'motifs': dict(iou_plus_one=True, empty_pred='zero'),
    'sgg_benchmark': dict(iou_plus_one='intersection', empty_pred='zero', pair_accuracy='cut'),
    'psg': dict(iou_plus_one=False, empty_pred='skip', phrase=True),
    'openimages': dict(
        iou_plus_one=True,
        empty_pred='skip',
        ng_average='pooled',
        ng_empty_pred='zero',
        predicates_per_pair=2,
        min_score=1e-5,
    ),
    'vrd': dict(iou_plus_one=True, empty_pred='zero', average='pooled', phrase=True),
}
for _options in CONVENTIONS.values():
    _options.setdefault('average', 'image')
    # Every evaluator above divides by all predicates of the vocabulary.
    _options.setdefault('absent', 'zero')


def check_ks(ks: Sequence[int] | int, iou_thr: float) -> tuple[int, ...]:
    """Validate ``ks`` and ``iou_thr``, and return ``ks`` as a tuple of ints.

    Raises:
        ValueError: A value is invalid.
    """
    values = (ks,) if isinstance(ks, int | np.integer) else tuple(ks)
    if not values or any(int(k) != k or k < 1 for k in values):
        raise ValueError(f'ks must be positive integers, got {values}')
    if not 0 < iou_thr <= 1:
        raise ValueError(f'iou_thr must be in (0, 1], got {iou_thr}')
    return tuple(int(k) for k in values)
