"""What the routes did in a step, taken together: one norm before, one after, one record."""

from __future__ import annotations

import torch
from torch import Tensor

from ..base import Measure, Outcome
from ..gradients.norms import combine, host, quiet
from ..gradients.view import GradView
from .record import make_record


def measure(view: GradView) -> Measure:
    """What the rule of a view reads; of exempt parameters, their norm."""
    if view.route.clipper is None:
        return Measure(combine(view.norms()))
    return view.route.clipper.measure(view)


def is_global(view: GradView) -> bool:
    """Whether all gradients of the view get one coefficient."""
    return view.route.clipper is not None and view.route.clipper.is_global


def total_norm(views: list[GradView], measures: list[Measure], p: float) -> Tensor:
    """The p-norm of all gradients, 0-d; p is the order of the outer rule."""
    if len(views) == 1:
        return measures[0].norm
    parts = [
        part.norm if _norm_type(view) == p else combine(view.norms(p), p)
        for view, part in zip(views, measures, strict=True)
    ]
    return _joined(parts, parts[0].device, p)


def summarize(
    views: list[GradView],
    measures: list[Measure],
    outcomes: list[Outcome | None],
    norm: Tensor,
    nonfinite: Tensor | float,
    p: float,
) -> Tensor:
    """The record (6,) of a step that was taken (:mod:`gclip_mm.clipping.step.record`).

    Args:
        views: the gradients, clipped.
        measures: what was read of each view before.
        outcomes: what each view's rule did; None for exempt parameters.
        norm: 0-d, the norm of all gradients before.
        nonfinite: 1 where the gradients were not finite, else 0.
        p: order of the outer rule's norm.
    """
    device = norm.device
    active = [outcome for outcome in outcomes if outcome is not None]
    coef = None
    if len(views) == 1 and active:
        outcome = active[0]
        post, threshold = outcome.post, outcome.threshold
        # Any other rule that leaves a coefficient has changed the gradients before.
        coef = outcome.coef if is_global(views[0]) else None
        fraction = outcome.clipped / outcome.units
    else:
        posts = [
            part.norm if outcome is None else outcome.post
            for part, outcome in zip(measures, outcomes, strict=True)
        ]
        if any(_norm_type(view) != p for view in views):
            posts = [combine(view.norms(p), p) for view in views]
        post = _joined(posts, device, p)
        # The route without a condition, which takes the rest, is the outer rule.
        outer = outcomes[-1] if views[-1].route.selector is None else None
        threshold = outer.threshold if outer is not None else float('nan')
        fraction = _clipped_share(views, outcomes)
    if coef is None:
        coef = _share(post, norm)
    return make_record(device, norm, post, coef, threshold, fraction, nonfinite)


def _clipped_share(views: list[GradView], outcomes: list[Outcome | None]) -> Tensor | float:
    """The share of the weights whose unit was clipped.

    A rule counts in units of its own: elements, rows, tensors, or everything at once. Each route's
    share counts by the weights that it governs.
    """
    pairs = [(v, o) for v, o in zip(views, outcomes, strict=True) if o is not None]
    total = sum(view.elements for view, _ in pairs)
    if not total:
        return 0.0
    return sum(o.clipped * (v.elements / (o.units * total)) for v, o in pairs if o.units)


def _share(post: Tensor, norm: Tensor) -> Tensor | float:
    """The norm after clipping over that before; 1 where there is none."""
    before, after = host(norm), host(post)
    if before is None or after is None:
        return torch.where(norm > 0, post / norm, 1.0)
    with quiet():
        return float(after) / float(before) if before > 0 else 1.0


def _joined(norms: list[Tensor], device: torch.device, p: float) -> Tensor:
    return combine(torch.stack([norm.to(device, torch.float64) for norm in norms]), p)


def _norm_type(view: GradView) -> float:
    return 2.0 if view.route.clipper is None else view.route.clipper.norm_type
