"""Adaptive gradient clipping, unit by unit."""

from __future__ import annotations

import torch
from torch import Tensor

from ..base import UnitClipper, UnitLimits
from ..checks import check_number
from ..config.registry import CLIPPERS
from ..gradients.view import GradView


@CLIPPERS.register_module(aliases=('agc', 'adaptive'))
class AGC(UnitClipper):
    """Keep the gradient of each unit small relative to the weights of that unit.

    For a unit with weights ``w`` and gradient ``g``: ``limit = clip_factor * max(|w|, eps)``, and
    where ``|g| > limit``, ``g *= limit / max(|g|, 1e-6)``. A unit is an output filter, a row of a
    linear layer, or a whole bias (:mod:`gclip_mm.clipping.gradients.units`). On a CPU, a skipped
    step may have scaled the units whose gradient was finite (docs/cpu.md).

    Good for: nets without batch norm, large batches and learning rates, with SGD: the largest step
    relative to the weight is at most about ``lr * clip_factor``. The best factor is inversely
    proportional to the learning rate. Bad for: AdamW, whose step does not depend on the gradient's
    scale, so that AGC only distorts its moments (the paper uses SGD only); the final classifier,
    which the paper does not clip (``exclude``).

    Args:
        clip_factor: largest ratio of the gradient's norm to the weight's, at least 0.
        eps: lower bound on the norm of a unit's weights, above 0, so that weights initialised to
            zero still learn.

    Raises:
        ClipConfigError: a value out of range.

    Source: Brock et al., "High-Performance Large-Scale Image Recognition Without Normalization"
    (NFNets), arXiv 2102.06171, section 4.

    Example:
        >>> optim_wrapper = dict(
        ...     type='GClipOptimWrapper',
        ...     optimizer=dict(type='SGD', lr=0.02, momentum=0.9),
        ...     clip_grad=dict(type='AGC', clip_factor=0.01, exclude=[r'fc_cls']))
    """

    thresholds = ('clip_factor',)
    source = 'arXiv 2102.06171'

    def __init__(self, clip_factor: float = 0.01, eps: float = 1e-3) -> None:
        check_number('clip_factor', clip_factor, low=0)
        check_number('eps', eps, low=0, open_low=True)
        self.clip_factor = clip_factor
        self.eps = eps

    # kernels/host_kernels.py, ``limit``, computes the same formula.
    def decide(self, norms: Tensor, weights: Tensor, view: GradView) -> tuple[Tensor, Tensor]:
        limits = weights.clamp(min=self.eps).mul_(self.clip_factor)
        return torch.where(norms > limits, limits / norms.clamp(min=1e-6), 1.0), limits

    def unit_limits(self) -> UnitLimits:
        """The numbers of :meth:`decide`, for the kernel that scales while it measures."""
        return UnitLimits(self.eps, self.clip_factor)
