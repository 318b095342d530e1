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
    """What is known of the norms so far.

    Attributes:
        count: 0-d int64, finite steps so far.
        mean: 0-d float64, moving average of the norm; while warming up, the plain mean.
        var: 0-d float64, moving average of its squared deviation; while warming up, the variance.
    """

    count: Tensor  # type: ignore[assignment]  # shadows tuple.count; a key of checkpoints
    mean: Tensor
    var: Tensor


@CLIPPERS.register_module()
class ZClip(GlobalClipper):
    """Clip by the global norm, where it is a spike among the norms of the run.

    With ``n`` the norm and ``z = (n - mean) / std``, a step with ``z > z_threshold`` is a spike and
    is clipped to

    - ``reciprocal``: ``mean + std * z_threshold**2 / z``, the further out, the closer to the mean;
    - ``mean``: ``mean``;
    - ``percentile``: ``mean + std * z_threshold``.

    Then ``mean = alpha * mean + (1 - alpha) * n`` and ``var = alpha * var + (1 - alpha) *
    (n - mean)**2`` with the new mean, and with the norm that a spike was clipped to in place of its
    own. The first ``warmup_steps`` norms are not clipped by z-score: mean and variance start as
    theirs. ``max_norm`` bounds every step, from the first one on, and does not touch the
    statistics. The threshold that is logged is the norm from which a step counts as a spike, or for
    a spike what it was clipped to.

    Good for: long runs, of language models above all, in which rare spikes do the damage and the
    ordinary gradient is to be left alone. Bad for: norms that are far from normally distributed, as
    in detectors with few positive samples, where the tail is clipped all the time; norms that rise
    after a warm-up of the learning rate longer than ``warmup_steps``. The paper trains with norms
    below 1: set ``max_norm`` to your model's scale, or None.

    Args:
        alpha: weight of the past in the moving averages, at least 0 and below 1.
        z_threshold: z-score from which a step is a spike, above 0.
        warmup_steps: steps whose norms start the statistics, at least 1.
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
        # Not z itself, which has no value where the deviation is 0.
        spike = where(warming, False, excess > self.z_threshold * std)
        if self.mode == 'reciprocal':
            allowed = mean + self.z_threshold**2 * var / where(spike, excess, 1.0)
        else:
            allowed = mean if self.mode == 'mean' else mean + self.z_threshold * std
        allowed = where(spike, allowed, n)

        step = where(warming, 1.0 / (count + 1), 1 - self.alpha)
        new_mean = mean + step * (allowed - mean)
        # A running variance is about the means before and after, the paper's about the new mean.
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
