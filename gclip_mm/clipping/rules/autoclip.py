"""Clip by a percentile of the norms seen so far."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..base import Finite, GlobalClipper
from ..checks import check_number
from ..config.registry import CLIPPERS
from ..host import host, np
from ..kernels import KernelCall
from ..small_state import remember, scalars, to_tensor


class AutoClipState(NamedTuple):
    """The norms of the last steps.

    Attributes:
        history: (window,) float64, a ring buffer; +inf in unused entries.
        count: 0-d int64, finite steps so far; the next norm goes to ``count % window``.
    """

    history: Tensor
    count: Tensor  # type: ignore[assignment]  # shadows tuple.count; a key of checkpoints


@CLIPPERS.register_module()
class AutoClip(GlobalClipper):
    """Clip by the global norm, at a percentile of the norms of the last steps.

    ``threshold = percentile(history, percentile)``, the current norm included, interpolated
    linearly between neighbours; ``g * min(1, threshold / norm(g))``. At percentile 10, nine steps
    in ten are scaled down to the norm of the smallest tenth: the rule normalises the gradient more
    than it clips spikes. At 100 nothing is clipped. The window bounds the memory and lets the
    threshold follow the run; the paper keeps the whole history.

    Good for: a first run of an unknown model, since the threshold needs no tuning and follows the
    scale of the loss. Bad for: a learning rate that was tuned without clipping, which has to be
    raised when 90% of the steps are shortened; runs whose norm has to grow at the end; gradients
    that are exactly zero in more than ``percentile`` percent of the steps, which make the threshold
    0. Adam undoes a constant factor, so with Adam the rule removes only the variation from step to
    step.

    Args:
        percentile: from 0 to 100.
        window: number of norms in the history, at least 1.

    Raises:
        ClipConfigError: a value out of range.

    Source: Seetharaman et al., "AutoClip: Adaptive Gradient Clipping for Source Separation
    Networks", arXiv 2007.14469.

    Example:
        >>> optim_wrapper = dict(
        ...     type='GClipOptimWrapper',
        ...     optimizer=dict(type='SGD', lr=0.02, momentum=0.9),
        ...     clip_grad=dict(type='AutoClip', percentile=10, window=1000))
    """

    State = AutoClipState
    thresholds = ('percentile',)
    source = 'arXiv 2007.14469'

    def __init__(self, percentile: float = 10, window: int = 1000) -> None:
        check_number('percentile', percentile, low=0, high=100)
        check_number('window', window, low=1, integer=True)
        self.percentile = percentile
        self.window = window

    # kernels/decision_kernels.py, ``autoclip``, computes the same formula.
    def decide(self, norm: Tensor, finite: Finite) -> tuple[Tensor, Tensor | float]:
        state = self.state or self._empty_state(norm.device)
        on_host = host(norm) is not None and host(state.history) is not None
        percentile_of = self._on_host if on_host else self._on_device
        threshold = percentile_of(state, norm, finite)
        if finite.learns:
            self.state = state
        (value,), where = scalars(norm)
        coef = where(value > threshold, threshold / where(value > 0, value, 1.0), 1.0)
        return to_tensor(coef, norm), threshold

    def decision_kernel(self, device: torch.device) -> KernelCall | None:
        self.state = self.state or self._empty_state(device)
        if any(field.device != device for field in self.state):
            return None
        return KernelCall('autoclip', (*self.state, self.window, self._fraction), {})

    def _empty_state(self, device: torch.device) -> AutoClipState:
        return AutoClipState(
            torch.full((self.window,), torch.inf, dtype=torch.float64, device=device),
            torch.zeros((), dtype=torch.int64, device=device),
        )

    @property
    def _fraction(self) -> float:
        # A schedule may have set the percentile outside its range.
        return min(max(self.percentile, 0.0), 100.0) / 100.0

    def _rank(self, count: Any) -> Any:
        """The fractional index of the percentile among ``count`` sorted numbers."""
        return self._fraction * (count - 1)

    def _on_host(self, state: AutoClipState, norm: Tensor, finite: Finite) -> float:
        history, count = host(state.history), host(state.count)
        if not finite.learns:
            history, count = history.copy(), count.copy()
        history[int(count) % self.window] = float(host(norm))
        count += 1
        seen = min(int(count), self.window)
        rank = self._rank(seen)
        low = int(rank)
        high = min(low + 1, seen - 1)
        ordered = np.partition(history[:seen], (low, high))
        return float(ordered[low] + (rank - low) * (ordered[high] - ordered[low]))

    def _on_device(self, state: AutoClipState, norm: Tensor, finite: Finite) -> Tensor:
        history, count = (field.to(norm.device) for field in state)
        place = (count % self.window).view(1)
        history = history.index_copy(0, place, norm.double().view(1))
        seen = torch.clamp(count + 1, max=self.window)
        rank = self._rank(seen.double())
        low = rank.long()
        high = torch.minimum(low + 1, seen - 1)
        ordered = torch.sort(history).values
        a, b = (ordered.gather(0, at.view(1)).view(()) for at in (low, high))
        remember(state, (history, count + 1), finite)
        threshold: Tensor = a + (rank - low) * (b - a)
        return threshold

    def load_state_dict(self, state: dict[str, Any], params: list[Tensor]) -> None:
        """Restore the history.

        Raises:
            ValueError: the state belongs to another rule, or its window differs.
        """
        history = state.get('history')
        if history is not None and len(history) != self.window:
            raise ValueError(
                f'the AutoClip history in the checkpoint has window={len(history)}, this run has '
                f'window={self.window}: resume with the window of the checkpoint, or load '
                'only the weights to start the rule from scratch'
            )
        super().load_state_dict(state, params)
