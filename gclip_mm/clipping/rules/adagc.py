"""Clip each tensor against the moving average of its own norm."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..base import Finite, TensorClipper
from ..checks import check_number
from ..config.registry import CLIPPERS
from ..gradients.norms import quiet
from ..gradients.view import GradView
from ..small_state import columns, remember, to_tensor


class AdaGCState(NamedTuple):
    """Statistics of each parameter of the route.

    Attributes:
        average: (parameters,) float64, moving average of the clipped norm; during the warm-up of a
            parameter, the smallest clipped norm so far; +inf before its first gradient.
        count: (parameters,) int64, number of gradients so far.
    """

    average: Tensor
    count: Tensor  # type: ignore[assignment]  # shadows tuple.count; a key of checkpoints


@CLIPPERS.register_module()
class AdaGC(TensorClipper):
    """Keep each tensor's norm near the moving average of its own clipped norms.

    During the warm-up of a tensor, its first ``warmup_steps`` gradients, the coefficient of the
    global norm, ``min(1, max_norm / norm(all))``, scales it, and ``average`` is the smallest of its
    clipped norms. After that::

        g *= min(1, rel * average / norm(g))
        average = beta * average + (1 - beta) * norm(g after clipping)

    A gradient that is exactly zero while others are not (a box head in a batch without a positive
    box) is treated as missing. Otherwise one such step during the warm-up would set the average to
    zero and freeze the tensor.

    Good for: language models and ViTs with AdamW, whose rare spikes hit single tensors: the spikes
    never reach the moments, and other tensors are not scaled for them. Bad for: norms that have to
    grow. The average starts from the smallest norm seen and rises by a factor of at most
    ``1 + (1 - beta) * (rel - 1)``, a thousandth, in a step. With SGD on a detector whose norm rises
    after the warm-up it clips far too much. The default ``max_norm`` suits language models; set it
    to the scale of your model.

    Args:
        rel: how far above its average a norm may be, as a factor above 0.
        beta: weight of the past in the moving average, at least 0 and below 1.
        warmup_steps: gradients of a tensor before its own average is used, at least 1.
        max_norm: bound on the global norm during the warm-up, at least 0.

    Raises:
        ClipConfigError: a value out of range.

    Source: Wang et al., "AdaGC: Enhancing LLM Pretraining Stability via Adaptive Gradient
    Clipping", arXiv 2502.11034, algorithm 1.

    Example:
        >>> optim_wrapper = dict(
        ...     type='GClipOptimWrapper',
        ...     optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05),
        ...     clip_grad=dict(type='AdaGC', rel=1.05, beta=0.98, warmup_steps=100))
    """

    State = AdaGCState
    per_param = dict(average=math.inf, count=0)
    thresholds = ('rel', 'max_norm')
    source = 'arXiv 2502.11034'

    def __init__(
        self,
        rel: float = 1.05,
        beta: float = 0.98,
        warmup_steps: int = 100,
        max_norm: float = 1.0,
    ) -> None:
        check_number('rel', rel, low=0, open_low=True)
        check_number('beta', beta, low=0, high=1, open_high=True)
        check_number('warmup_steps', warmup_steps, low=1, integer=True)
        check_number('max_norm', max_norm, low=0)
        self.rel = rel
        self.beta = beta
        self.warmup_steps = warmup_steps
        self.max_norm = max_norm

    def decide(self, norms: Tensor, view: GradView, finite: Finite) -> tuple[Tensor, Tensor]:
        state = self.state or AdaGCState(
            torch.full((view.size,), torch.inf, dtype=torch.float64, device=norms.device),
            torch.zeros(view.size, dtype=torch.int64, device=norms.device),
        )
        # A step that does not update the state may have non-finite gradients.
        with quiet():
            (n, average, count), xp = columns(norms, view, *state)
            warming = count < self.warmup_steps
            total = (n * n).sum() ** 0.5
            share = xp.where(total > 0, n / total, len(n) ** -0.5)
            bound = xp.where(warming, self.max_norm * share, self.rel * average)
            coefs = xp.where(n > bound, bound / n, 1.0)

            clipped = n * coefs
            ema = self.beta * average + (1 - self.beta) * clipped
            new_average = xp.where(warming, xp.minimum(average, clipped), ema)
            seen = (n > 0) | ((total == 0) & ~warming)
            news = xp.where(seen, new_average, average), xp.where(seen, count + 1, count)
        if finite.learns:
            self.state = state
            remember(state, news, finite, view)
        return to_tensor(coefs, norms), to_tensor(bound, norms)
