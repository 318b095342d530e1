"""The record of a step: six numbers that stay on the device until they are read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..base import Measure, Outcome, Update
from ..gradients.norms import combine, quiet
from ..host import host
from .parameters import RoutedView

#: Names of the numbers of a record, in the order of the tensor: the log keys.
LOG_KEYS = (
    'grad_norm',
    'grad_norm_post',
    'clip_coef',
    'clip_threshold',
    'clip_fraction',
    'nonfinite',
)
_COEF, _THRESHOLD, _FRACTION = map(LOG_KEYS.index, ('clip_coef', 'clip_threshold', 'clip_fraction'))


def make_record(device: torch.device, *values: Tensor | float) -> Tensor:
    """Pack the numbers of a step, in the order of ``LOG_KEYS``, into a float64 tensor (6,)."""
    return _pack_on_host(values) if device.type == 'cpu' else pack_on_device(device, *values)


def _pack_on_host(values: tuple[Tensor | float, ...]) -> Tensor:
    # tolist() reads host memory without issuing a device read, as item() would.
    numbers: list[Any] = [v.tolist() if isinstance(v, Tensor) else v for v in values]
    return torch.tensor(numbers, dtype=torch.float64)


def pack_on_device(device: torch.device, *values: Tensor | float) -> Tensor:
    """:func:`make_record` without a device read."""
    parts = [
        v.to(device, torch.float64).reshape(())
        if isinstance(v, Tensor)
        # full() writes the number with a kernel; tensor() would copy it and wait.
        else torch.full((), v, dtype=torch.float64, device=device)
        for v in values
    ]
    return torch.stack(parts)


def add_update(record: Tensor, part: RoutedView, update: Update, elements: int) -> None:
    """Add to the record of a step, in place, what a rule did to the update.

    Args:
        record: (6,) the record.
        part: the view of the rule.
        update: what it did.
        elements: number of weights that any rule governs in this step.
    """
    where = record.device
    if part.view.elements == elements:
        kept = torch.where(update.moved > 0, update.kept / update.moved, 1.0)
        record[_COEF] *= kept.to(where)
    if part.route.selector is None:
        # The route without a condition, which takes the rest, is the outer rule.
        record[_THRESHOLD] = update.threshold.to(where)
    share = part.view.elements / (update.parts * max(elements, 1))
    record[_FRACTION] += (update.clipped * share).to(where)


def record_to_dict(record: Tensor) -> dict[str, float]:
    """The numbers of a record by name. Waits for the device."""
    return dict(zip(LOG_KEYS, record.tolist(), strict=True))


def total_norm(views: list[RoutedView], measures: list[Measure], p: float) -> Tensor:
    """The p-norm of all gradients, 0-d; p is the order of the outer rule."""
    if len(views) == 1:
        return measures[0].norm
    parts = [
        measure.norm if part.norm_type == p else combine(part.view.norms(p), p)
        for part, measure in zip(views, measures, strict=True)
    ]
    return _joined(parts, parts[0].device, p)


def summarize(
    views: list[RoutedView],
    measures: list[Measure],
    outcomes: list[Outcome | None],
    norm: Tensor,
    nonfinite: Tensor | float,
    p: float,
) -> Tensor:
    """The record (6,) of a step that was taken.

    Args:
        views: the gradients, clipped.
        measures: what was read of each view before clipping.
        outcomes: what the rule of each view did; None for exempt parameters.
        norm: 0-d, the norm of all gradients before clipping.
        nonfinite: 1 where the gradients were not finite, else 0.
        p: order of the outer rule's norm.
    """
    device = norm.device
    coef: Tensor | float | None = None
    threshold: Tensor | float
    fraction: Tensor | float
    only = outcomes[0] if len(views) == 1 else None
    if only is not None:
        post, threshold = only.post, only.threshold
        # Any other rule that leaves a coefficient has changed the gradients as well.
        coef = only.coef if views[0].is_global else None
        fraction = only.clipped / only.parts
    else:
        posts = [
            measure.norm if outcome is None else outcome.post
            for measure, outcome in zip(measures, outcomes, strict=True)
        ]
        if any(part.norm_type != p for part in views):
            posts = [combine(part.view.norms(p), p) for part in views]
        post = _joined(posts, device, p)
        # The route without a condition, which takes the rest, is the outer rule.
        outer = outcomes[-1] if views[-1].route.selector is None else None
        threshold = outer.threshold if outer is not None else float('nan')
        fraction = _clipped_share(views, outcomes)
    if coef is None:
        coef = _share(post, norm)
    return make_record(device, norm, post, coef, threshold, fraction, nonfinite)


def _clipped_share(views: list[RoutedView], outcomes: list[Outcome | None]) -> Tensor | float:
    """The share of the weights that belong to a clipped part.

    Each rule counts parts of its own: elements, units, tensors, or everything at once. The share of
    each route is weighted by the number of weights that it governs.
    """
    pairs = [(v.view, o) for v, o in zip(views, outcomes, strict=True) if o is not None]
    total = sum(view.elements for view, _ in pairs)
    if not total:
        return 0.0
    return sum(o.clipped * (v.elements / (o.parts * total)) for v, o in pairs if o.parts)


def _share(post: Tensor, norm: Tensor) -> Tensor | float:
    """The norm after clipping over the norm before; 1 where that is 0."""
    before, after = host(norm), host(post)
    if before is None or after is None:
        return torch.where(norm > 0, post / norm, 1.0)
    with quiet():
        return float(after) / float(before) if before > 0 else 1.0


def _joined(norms: list[Tensor], device: torch.device, p: float) -> Tensor:
    return combine(torch.stack([norm.to(device, torch.float64) for norm in norms]), p)
