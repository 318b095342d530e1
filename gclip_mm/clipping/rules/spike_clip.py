"""Clip single elements against the moving average of their own square."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..base import Clipper, Finite, Measure, Outcome
from ..checks import check_number
from ..config.registry import CLIPPERS
from ..gradients.norms import combine
from ..gradients.pieces import pieces
from ..gradients.view import GradView
from ..host import host
from ..small_state import columns, remember, to_tensor

#: Squares of larger numbers overflow float32.
_LARGEST = 1.8e19


class SpikeClipState(NamedTuple):
    """Statistics of each parameter of the route.

    Attributes:
        square: one tensor per parameter, of its gradient's shape, float32 or wider: the moving
            average of the clipped gradient's square, not corrected for its start at 0; None before
            its first gradient.
        total: (parameters,) float64, the sum of ``square``, updated without a pass over ``square``.
        count: (parameters,) int64, number of gradients so far.
    """

    square: list[Tensor | None]
    total: Tensor
    count: Tensor  # type: ignore[assignment]  # shadows tuple.count; a key of checkpoints


@CLIPPERS.register_module()
class SpikeClip(Clipper):
    """Clip single elements to a multiple of their own usual size.

    With ``v`` the moving average of an element's square up to the previous step::

        g = sign(g) * sqrt(theta * v)    where g**2 > theta * v
        v = beta * v + (1 - beta) * g**2

    A parameter's first ``grace_steps`` gradients only update ``v``. An element whose gradient has
    been zero so far is not clipped, because the formula would keep it at zero. The logged threshold
    is the norm of the bounds of all elements.

    Good for: training with Adam in which few elements spike by orders of magnitude (SPAM finds
    them in language models); the rest of the gradient is untouched. Bad for: spikes of whole
    tensors, which pass as long as each element stays below ``sqrt(theta)``, 70 times its usual
    size; memory: one buffer of the gradients' size, as large as Adam's second moment. SPAM also
    resets Adam's moments every 500 steps. The rule does not do that; call :meth:`reset` with each
    reset of the moments to start the grace steps again.

    Args:
        theta: how far a square may be above its average, as a factor above 0.
        beta: weight of the past in the moving average, at least 0 and below 1.
        grace_steps: gradients of a parameter that are not clipped at the start, at least 0.

    Raises:
        ClipConfigError: a value out of range.

    Source: Huang et al., "SPAM: Spike-Aware Adam with Momentum Reset for Stable LLM Training",
    arXiv 2501.06842.

    Example:
        >>> optim_wrapper = dict(
        ...     type='GClipOptimWrapper',
        ...     optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05),
        ...     clip_grad=dict(type='SpikeClip', theta=5000))
    """

    State = SpikeClipState
    per_param = dict(square=None, total=0.0, count=0)
    elementwise_state = True
    thresholds = ('theta',)
    source = 'arXiv 2501.06842'

    def __init__(self, theta: float = 5000, beta: float = 0.999, grace_steps: int = 20) -> None:
        check_number('theta', theta, low=0, open_low=True)
        check_number('beta', beta, low=0, high=1, open_high=True)
        check_number('grace_steps', grace_steps, low=0, integer=True)
        self.theta = theta
        self.beta = beta
        self.grace_steps = grace_steps

    def measure(self, view: GradView) -> Measure:
        parts = view.backend.norms(kernels=False)
        return Measure(combine(parts), parts)

    def clip(self, view: GradView, measure: Measure, finite: Finite) -> Outcome:
        device = measure.norm.device
        state = self.state or SpikeClipState(
            [None] * view.size,
            torch.zeros(view.size, dtype=torch.float64, device=device),
            torch.zeros(view.size, dtype=torch.int64, device=device),
        )
        assert measure.parts is not None
        (norms, total, count), xp = columns(measure.parts, view, state.total, state.count)
        armed = count >= self.grace_steps
        bounds = xp.where(armed, (self.theta * total) ** 0.5, torch.inf)
        counts = measure.norm.new_zeros(len(view.grads), dtype=torch.float64)
        untouched = True
        for i, (slot, grad) in enumerate(zip(view.slots, view.grads, strict=True)):
            square = state.square[slot]
            if square is None:
                dtype = torch.promote_types(grad.dtype, torch.float32)
                square = torch.zeros_like(grad, dtype=dtype)
            for part, average in pieces(grad, square):
                hits = self._cut(part, average, armed[i])
                if hits is not None:
                    counts[i] += hits
                    untouched = False
                if finite.learns:
                    self._average(part, average, finite)
            if finite.learns:
                state.square[slot] = square
            if isinstance(norms, Tensor) or not norms[i] < 0.1 * _LARGEST:
                # An average of inf would stay inf.
                square.clamp_(max=torch.finfo(square.dtype).max)
        # All ranks have to measure again, or none, so the local shard must not decide.
        is_same = untouched and view.sharding is None
        parts = measure.parts if is_same else view.backend.norms(kernels=False)
        if finite.learns:
            (after,), _ = columns(parts, view)
            total = self.beta * total + (1 - self.beta) * after * after
            self.state = state
            remember((state.total, state.count), (total, count + 1), finite, view)
        bound = combine(to_tensor(bounds, measure.norm))
        clipped = view.sum(counts).sum()
        return Outcome(None, combine(parts), bound, clipped, max(view.elements, 1))

    def _cut(self, grad: Tensor, average: Tensor, armed: bool | Tensor) -> Tensor | None:
        """Clip a piece of a gradient in place; returns the number of clipped elements or None."""
        if not isinstance(armed, Tensor) and not armed:
            return None
        wide = grad.to(average.dtype)
        if not isinstance(armed, Tensor):
            # Spikes are rare, and finding none takes fewer passes than clipping.
            excess = torch.addcmul(average * -self.theta, wide, wide)
            if not excess.numel() or host(excess.max()) <= 0:
                return None
        limit = average.sqrt().mul_(self.theta**0.5)
        limit.masked_fill_(limit == 0, torch.inf)
        spikes = wide.abs() > limit
        if isinstance(armed, Tensor):
            spikes &= armed.to(spikes.device)
        grad.copy_(torch.where(spikes, limit.copysign_(wide), wide))
        return spikes.sum()

    def _average(self, grad: Tensor, average: Tensor, finite: Finite) -> None:
        """Update the moving average of the square with a piece of a clipped gradient."""
        wide = grad.to(average.dtype)
        if finite.flag is None:
            average.mul_(self.beta).addcmul_(wide, wide, value=1 - self.beta)
            return
        new = (average * self.beta).addcmul_(wide, wide, value=1 - self.beta)
        average.copy_(torch.where(finite.flag.to(average.device), new, average))
