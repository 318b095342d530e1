"""Clip single elements against the moving average of their tensor's largest."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..base import Clipper, Measure, Outcome
from ..checks import check_number
from ..config.registry import CLIPPERS
from ..gradients.norms import combine, quiet
from ..gradients.outliers import OutlierEdit, measure_with_rows
from ..small_state import columns, learns, remember, to_tensor


class AdaClipState(NamedTuple):
    """What is known of each parameter of the route.

    Attributes:
        peak: (parameters,) float64, moving average of the largest absolute value, not corrected for
            its start at 0.
        count: (parameters,) int64, the gradients it has had.
    """

    peak: Tensor
    count: Tensor

    fresh = dict(peak=0.0, count=0)


@CLIPPERS.register_module()
class AdaClip(Clipper):
    """Scale down the elements that are larger than the tensor's largest element usually is.

    With ``top`` the largest absolute value in a tensor's gradient and ``t`` the number of gradients
    it has had::

        peak = beta * peak + (1 - beta) * top
        bound = peak / (1 - beta**t)
        g = g * bound / top     where |g| > bound

    ``top`` itself becomes ``bound``; the other elements above it are scaled alike, so that some may
    end below elements that were let through. The threshold that is logged is the largest tensor's
    ``bound``.

    Good for: low-precision training with Adam, where single elements spike (Stable-SPAM applies it
    before ``GradientStabilizer``); it needs no threshold and one number a tensor. Bad for: tensors
    whose largest element varies from step to step as a matter of course: half the steps are above
    their own average and are clipped, if slightly.

    Args:
        beta: weight of the past in the moving average, at least 0 and below 1.

    Raises:
        ClipConfigError: a value out of range.

    Source: Huang et al., "Stable-SPAM: How to Train in 4-Bit More Stably than 16-Bit Adam",
    arXiv 2502.17055v2.

    Example:
        >>> optim_wrapper = dict(
        ...     type='GClipOptimWrapper',
        ...     optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05),
        ...     clip_grad=dict(type='ChainClip', clips=[
        ...         dict(type='AdaClip', beta=0.999), dict(type='GradientStabilizer')]))
    """

    State = AdaClipState
    source = 'arXiv 2502.17055v2'

    def __init__(self, beta: float = 0.999) -> None:
        check_number('beta', beta, low=0, high=1, open_high=True)
        self.beta = beta

    def measure(self, view) -> Measure:
        return measure_with_rows(view)

    def clip(self, view, measure: Measure, ok: Tensor | None) -> Outcome:
        tops = view.norms(float('inf'))
        state = self.state or AdaClipState(
            torch.zeros(view.size, dtype=torch.float64, device=tops.device),
            torch.zeros(view.size, dtype=torch.int64, device=tops.device),
        )
        # The gradients of a step that nobody may learn from need not be finite.
        with quiet():
            (top, peak, count), xp = columns(tops, view, *state)
            peak = self.beta * peak + (1 - self.beta) * top
            bound = peak / (1 - self.beta ** (count + 1))
            ratio = xp.where(top > bound, bound / top, 1.0)
        if learns(ok):
            self.state = state
            remember(state, (peak, count + 1), ok, view)

        edit = OutlierEdit(view.grads, measure.parts, measure.rows)
        cut = range(len(ratio)) if xp is torch else (ratio < 1).nonzero()[0].tolist()
        for i in cut:
            change = _Cut(view.grads[i], bound[i], ratio[i])
            edit.apply(i, *change.range, change)
        # The bounds are the same on every rank, so that all of them look again or none does.
        looks_again = view.sharding is not None and len(cut)
        parts = view.norms() if looks_again else edit.norms()
        threshold = to_tensor(bound, tops).max()
        clipped = view.sum(edit.counts).sum()
        return Outcome(None, combine(parts), threshold, clipped, max(view.elements, 1))


class _Cut:
    """Scales the elements of a gradient that are larger than a bound."""

    def __init__(self, grad: Tensor, bound: Any, ratio: Any) -> None:
        if isinstance(bound, Tensor):
            self._bound, self._ratio = (x.to(grad.device, grad.dtype) for x in (bound, ratio))
            self.range = None, None
        else:
            self._bound, self._ratio = float(bound), float(ratio)
            self.range = -self._bound, self._bound

    def __call__(self, values: Tensor, out: Tensor) -> None:
        if not isinstance(self._bound, Tensor):
            # What is above the bound, and 0 elsewhere; in two passes instead of four.
            torch.hardshrink(values, self._bound, out=out)
            torch.add(values, out, alpha=self._ratio - 1, out=out)
            return
        above = torch.abs(values, out=out) > self._bound
        torch.mul(values, self._ratio, out=out)
        torch.where(above, out, values, out=out)
