"""Clip single elements against the moving average of their tensor's largest element."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..base import ElementClipper, Finite, Ranges
from ..checks import check_number
from ..config.registry import CLIPPERS
from ..gradients.norms import quiet
from ..gradients.view import GradView
from ..small_state import columns, remember, to_tensor


class AdaClipState(NamedTuple):
    """Statistics of each parameter of the route.

    Attributes:
        peak: (parameters,) float64, moving average of the largest absolute value, not corrected for
            its start at 0.
        count: (parameters,) int64, number of gradients so far.
    """

    peak: Tensor
    count: Tensor  # type: ignore[assignment]  # shadows tuple.count; a key of checkpoints


@CLIPPERS.register_module()
class AdaClip(ElementClipper):
    """Scale down the elements that are larger than the tensor's largest element usually is.

    With ``top`` the largest absolute value in a tensor's gradient and ``t`` the number of gradients
    so far::

        peak = beta * peak + (1 - beta) * top
        bound = peak / (1 - beta**t)
        g = g * bound / top     where |g| > bound

    ``top`` itself becomes ``bound``. The other elements above ``bound`` are scaled by the same
    factor, so that some may end below elements that were not clipped. The logged threshold is the
    largest ``bound`` of all tensors.

    Good for: low-precision training with Adam, where single elements spike (Stable-SPAM applies it
    before ``GradientStabilizer``); it needs no threshold and one number per tensor. Bad for:
    tensors whose largest element always varies from step to step: half the steps are above their
    own average and are clipped slightly.

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
    per_param = dict(peak=0.0, count=0)
    source = 'arXiv 2502.17055v2'

    def __init__(self, beta: float = 0.999) -> None:
        check_number('beta', beta, low=0, high=1, open_high=True)
        self.beta = beta

    def ranges(self, view: GradView, finite: Finite) -> Ranges:
        tops = view.norms(float('inf'))
        state = self.state or AdaClipState(
            torch.zeros(view.size, dtype=torch.float64, device=tops.device),
            torch.zeros(view.size, dtype=torch.int64, device=tops.device),
        )
        # A step that does not update the state may have non-finite gradients.
        with quiet():
            (top, peak, count), xp = columns(tops, view, *state)
            peak = self.beta * peak + (1 - self.beta) * top
            bound = peak / (1 - self.beta ** (count + 1))
            is_above = top > bound
            ratio = xp.where(is_above, bound / top, 1.0)
        if finite.learns:
            self.state = state
            remember(state, (peak, count + 1), finite, view)

        def change(i: int, values: Tensor, out: Tensor) -> None:
            _shrink(values, out, bound[i], ratio[i])

        high = xp.where(is_above, bound, math.inf)
        return Ranges(-high, high, to_tensor(bound, tops).max(), change)


def _shrink(values: Tensor, out: Tensor, bound: Any, ratio: Any) -> None:
    """Scale the elements whose absolute value is above the bound by the ratio, into ``out``."""
    if values.dtype in (torch.float16, torch.bfloat16):
        # The ratio may be too small for a half type.
        bound, ratio = (x.to(values.device) if isinstance(x, Tensor) else x for x in (bound, ratio))
        wide = values.float()
        out.copy_(torch.where(wide.abs() > bound, wide * ratio, wide))
        return
    if not isinstance(bound, Tensor):
        # hardshrink keeps the elements above the bound and zeroes the rest: two passes, not four.
        torch.hardshrink(values, float(bound), out=out)
        torch.add(values, out, alpha=float(ratio) - 1, out=out)
        return
    bound, ratio = (x.to(values.device, values.dtype) for x in (bound, ratio))
    above = torch.abs(values, out=out) > bound
    torch.mul(values, ratio, out=out)
    torch.where(above, out, values, out=out)
