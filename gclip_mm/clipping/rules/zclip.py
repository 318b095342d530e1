"""Clip norms that stand out from the run so far, by their z-score."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..base import Finite, GlobalClipper
from ..checks import check_choice, check_number
from ..config.registry import CLIPPERS
from ..kernels import KernelCall
from ..small_state import remember, scalars, to_tensor

_MODES = ('reciprocal', 'mean', 'percentile')


class ZClipState(NamedTuple):
    """Statistics of the norms so far.

    Attributes:
        count: 0-d int64, finite steps so far.
        mean: 0-d float64, moving average of the norm; during the warm-up, the mean.
        var: 0-d float64, moving average of its squared deviation; during the warm-up, the variance.
    """

    count: Tensor  # type: ignore[assignment]  # shadows tuple.count; a key of checkpoints
    mean: Tensor
    var: Tensor


@CLIPPERS.register_module()
class ZClip(GlobalClipper):
    """Clip by the global norm if it is a spike among the norms of the run.

    With ``n`` the norm and ``z = (n - mean) / std``, a step with ``z > z_threshold`` is a spike and
    is clipped to

    - ``reciprocal``: ``mean + std * z_threshold**2 / z``: the larger ``z``, the closer to the mean;
    - ``mean``: ``mean``;
    - ``percentile``: ``mean + std * z_threshold``.

    Then ``mean = alpha * mean + (1 - alpha) * n`` and ``var = alpha * var + (1 - alpha) *
    (n - mean)**2`` with the new mean. For a spike, ``n`` is its clipped norm. The first
    ``warmup_steps`` norms are not clipped by z-score; their mean and variance start the averages.
    ``max_norm`` bounds every step, including the first, and does not affect the statistics. The
    logged threshold is the norm above which a step is a spike; for a spike, it is the clipped norm.

    Good for: long runs, especially of language models, in which only rare spikes should be clipped.
    Bad for: norms that are far from normally distributed, as in detectors with few positive
    samples, where the rule constantly clips the tail; norms that rise after a learning-rate warm-up
    that is longer than ``warmup_steps``. The norms in the paper are below 1: set ``max_norm`` to
    your model's scale, or None.

    Args:
        alpha: weight of the past in the moving averages, at least 0 and below 1.
        z_threshold: z-score above which a step is a spike, above 0.
        warmup_steps: number of steps whose norms start the statistics, at least 1.
        mode: ``'reciprocal'``, ``'mean'`` or ``'percentile'``.
        max_norm: absolute bound, at least 0; None: no such bound.

    Raises:
        ClipConfigError: a value out of range.

    Source: Kumar et al., "ZClip: Adaptive Spike Mitigation for LLM Pre-Training",
    arXiv 2504.02507.

    Example:
        >>> optim_wrapper = dict(
        ...     type='GClipOptimWrapper',
        ...     optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05),
        ...     clip_grad=dict(type='ZClip', z_threshold=2.5, max_norm=None))
    """

    State = ZClipState
    thresholds = ('z_threshold', 'max_norm')
    source = 'arXiv 2504.02507'

    def __init__(
        self,
        alpha: float = 0.97,
        z_threshold: float = 2.5,
        warmup_steps: int = 25,
        mode: str = 'reciprocal',
        max_norm: float | None = 1.0,
    ) -> None:
        check_number('alpha', alpha, low=0, high=1, open_high=True)
        check_number('z_threshold', z_threshold, low=0, open_low=True)
        check_number('warmup_steps', warmup_steps, low=1, integer=True)
        check_choice('mode', mode, _MODES)
        check_number('max_norm', max_norm, low=0, allow_none=True)
        self.alpha = alpha
        self.z_threshold = z_threshold
        self.warmup_steps = warmup_steps
        self.mode = mode
        self.max_norm = max_norm

    # kernels/decision_kernels.py, ``zclip``, computes the same formula.
    def decide(self, norm: Tensor, finite: Finite) -> tuple[Tensor, Tensor | float]:
        state = self.state or _empty_state(norm.device)
        (n, count, mean, var), where = scalars(norm, *state)
        warming = count < self.warmup_steps
        std, excess = var**0.5, n - mean
        # Not by z itself, which is undefined if the deviation is 0.
        spike = where(warming, False, excess > self.z_threshold * std)
        if self.mode == 'reciprocal':
            allowed = mean + self.z_threshold**2 * var / where(spike, excess, 1.0)
        else:
            allowed = mean if self.mode == 'mean' else mean + self.z_threshold * std
        allowed = where(spike, allowed, n)

        step = where(warming, 1.0 / (count + 1), 1 - self.alpha)
        new_mean = mean + step * (allowed - mean)
        # A running variance uses the old and the new mean; the paper's formula uses the new mean.
        about = where(warming, mean, new_mean)
        new_var = (1 - step) * var + step * (allowed - about) * (allowed - new_mean)

        trigger = where(warming, torch.inf, mean + self.z_threshold * std)
        threshold = where(spike, allowed, trigger)
        if self.max_norm is not None:
            threshold = where(threshold > self.max_norm, self.max_norm, threshold)
        coef = where(n > threshold, threshold / where(n > 0, n, 1.0), 1.0)
        if finite.learns:
            self.state = state
            remember(state, (count + 1, new_mean, new_var), finite)
        return to_tensor(coef, norm), threshold

    def decision_kernel(self, device: torch.device) -> KernelCall | None:
        self.state = self.state or _empty_state(device)
        if any(field.device != device for field in self.state):
            return None
        bound = math.inf if self.max_norm is None else float(self.max_norm)
        numbers = float(self.alpha), float(self.z_threshold), self.warmup_steps, bound
        return KernelCall('zclip', (*self.state, *numbers), dict(MODE=self.mode))


def _empty_state(device: torch.device) -> ZClipState:
    return ZClipState(
        torch.zeros((), dtype=torch.int64, device=device),
        torch.zeros((), dtype=torch.float64, device=device),
        torch.zeros((), dtype=torch.float64, device=device),
    )
