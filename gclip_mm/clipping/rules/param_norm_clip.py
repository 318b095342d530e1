"""Clip each tensor by its own norm."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..base import Clipper, Finite, TensorClipper
from ..checks import check_flag, check_norm_type, check_number
from ..config.registry import CLIPPERS
from ..gradients.view import GradView
from .carry import Carry


@CLIPPERS.register_module()
class ParamNormClip(TensorClipper):
    """Scale each gradient tensor so that its own norm is at most ``max_norm``.

    ``g * min(1, max_norm / (norm_p(g) + 1e-6))`` for each tensor:
    :class:`~gclip_mm.clipping.rules.norm_clip.NormClip` applied to single tensors.

    Good for: models in which only one module has exploding gradients, since only that module is
    scaled. Bad for: the direction of the whole update, which changes; tensors of very different
    size, because one bound clips the largest tensors most (``BlockRMSClip`` divides by the size,
    ``AGC`` by the weight).

    Args:
        max_norm: largest norm of a tensor's gradient, at least 0.
        norm_type: order p of the norm: a number above 0, or ``'inf'``.
        carry: keep the clipped-off part and add it to the next step's gradient
            (:mod:`gclip_mm.clipping.rules.carry`).

    Raises:
        ClipConfigError: a value out of range.

    Source: ``torch.nn.utils.clip_grad_norm_`` on one tensor; Keras calls it ``clipnorm``.

    Example:
        >>> optim_wrapper = dict(
        ...     type='GClipOptimWrapper',
        ...     optimizer=dict(type='SGD', lr=0.02, momentum=0.9),
        ...     clip_grad=dict(type='ParamNormClip', max_norm=1.0))
    """

    thresholds = ('max_norm',)
    source = 'torch.nn.utils.clip_grad_norm_, tensor by tensor'
    example = dict(max_norm=0.1)

    def __init__(self, max_norm: float, norm_type: float | str = 2.0, carry: bool = False) -> None:
        check_number('max_norm', max_norm, low=0, allow_inf=True)
        check_flag('carry', carry)
        self.max_norm = max_norm
        self.norm_type = check_norm_type('norm_type', norm_type)
        self.carry = carry

    def assembled(self) -> Clipper:
        return Carry(self) if self.carry else self

    def decide(self, norms: Tensor, view: GradView, finite: Finite) -> tuple[Tensor, float]:
        coefs = torch.clamp(self.max_norm / (norms + 1e-6), max=1.0)
        share = 1.0 if self.norm_type == math.inf else len(norms) ** (1.0 / self.norm_type)
        return coefs, float(self.max_norm) * share
