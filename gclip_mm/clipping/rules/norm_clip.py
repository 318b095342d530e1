"""Clip by the global norm."""

from __future__ import annotations

import torch
from torch import Tensor

from ..base import Clipper, Finite, GlobalClipper
from ..checks import ClipConfigError, check_flag, check_norm_type, check_number
from ..config.registry import CLIPPERS
from ..kernels import KernelCall
from .carry import Carry


@CLIPPERS.register_module(aliases=('norm',))
class NormClip(GlobalClipper):
    """Scale all gradients by one factor so that their joint norm is at most ``max_norm``.

    ``g * min(1, max_norm / (norm_p(g) + 1e-6))``, the formula of
    ``torch.nn.utils.clip_grad_norm_``. On a CPU the result is bit-identical to torch's, unless a
    fused optimizer applies the coefficient, which rounds differently. On other devices the norm is
    accumulated in float64. The direction of the update does not change. ``min_norm`` scales smaller
    gradients up to that norm, for deep recurrent nets with vanishing gradients. A gradient of
    exactly zero has no direction and stays zero.

    Good for: detectors with SGD, recurrent and Transformer models. Bad for: models in which only
    one module has exploding gradients, since all modules are scaled (see ``rules`` and
    ``ParamNormClip``). The threshold has to be tuned for each model and learning rate
    (``tools/analysis/advise_clipping.py``).

    Args:
        max_norm: largest norm allowed, at least 0; ``inf`` clips nothing and logs the norm.
        norm_type: order p of the norm: a number above 0, or ``'inf'``.
        min_norm: smallest norm allowed, above 0 and at most ``max_norm``; None: no such bound.
        carry: keep the clipped-off part and add it to the next step's gradient
            (:mod:`gclip_mm.clipping.rules.carry`).

    Raises:
        ClipConfigError: a bound that is negative, NaN or out of order; ``carry`` and ``min_norm``
            together.

    Source: Pascanu, Mikolov, Bengio, "On the difficulty of training recurrent neural networks",
    arXiv 1211.5063.

    Example:
        >>> optim_wrapper = dict(
        ...     type='GClipOptimWrapper',
        ...     optimizer=dict(type='SGD', lr=0.02, momentum=0.9),
        ...     clip_grad=dict(type='NormClip', max_norm=35, norm_type=2))
    """

    thresholds = ('max_norm', 'min_norm')
    source = 'arXiv 1211.5063'
    example = dict(max_norm=1.0)
    matches_torch = True

    def __init__(
        self,
        max_norm: float,
        norm_type: float | str = 2.0,
        min_norm: float | None = None,
        carry: bool = False,
    ) -> None:
        check_number('max_norm', max_norm, low=0, allow_inf=True)
        check_number('min_norm', min_norm, low=0, high=max_norm, open_low=True, allow_none=True)
        check_flag('carry', carry)
        if carry and min_norm is not None:
            raise ClipConfigError(
                'clip_grad: carry returns the clipped-off part, but min_norm adds to the gradient: '
                'use only one of them'
            )
        self.max_norm = max_norm
        self.norm_type = check_norm_type('norm_type', norm_type)
        self.min_norm = min_norm
        self.carry = carry

    @property
    def never_increases(self) -> bool:
        """False with ``min_norm``, which raises a smaller norm."""
        return self.min_norm is None

    def assembled(self) -> Clipper:
        return Carry(self) if self.carry else self

    @property
    def _least(self) -> float | None:
        # A schedule may set min_norm above max_norm.
        return None if self.min_norm is None else min(self.min_norm, self.max_norm)

    # kernels/decision_kernels.py, ``norm_clip``, computes the same formula.
    def decide(self, norm: Tensor, finite: Finite) -> tuple[Tensor, float]:
        coef = torch.clamp(self.max_norm / (norm + 1e-6), max=1.0)
        least = self._least
        if least is not None:
            # At most the largest float32: an infinite factor would turn zeros into NaN.
            lift = torch.clamp(least / norm, max=torch.finfo(torch.float32).max)
            lift = torch.where(norm > 0, lift, 1.0)
            coef = torch.where(norm < least, lift, coef)
        return coef, float(self.max_norm)

    def decision_kernel(self, device: torch.device) -> KernelCall:
        # A bound of 0 has no effect, because no norm is below 0.
        bounds = float(self.max_norm), float(self._least or 0)
        return KernelCall('norm_clip', bounds, {})
