"""Clip each tensor by its root mean square."""

from __future__ import annotations

import torch
from torch import Tensor

from ..base import Finite, TensorClipper
from ..checks import check_number
from ..config.registry import CLIPPERS
from ..gradients.view import GradView


@CLIPPERS.register_module()
class BlockRMSClip(TensorClipper):
    """Scale each gradient tensor so that its root mean square is at most ``threshold``.

    ``g / max(1, rms(g) / threshold)`` with ``rms(g) = norm(g) / sqrt(number of elements)``.

    Good for: one bound for tensors of very different size, as Adafactor applies it to its updates,
    which are of order 1. Bad for: plain gradients at the default threshold, since their root mean
    square rarely comes near it and nothing is clipped; the direction of the whole update, which
    changes.

    Args:
        threshold: largest root mean square of a tensor's gradient, at least 0.

    Raises:
        ClipConfigError: a value out of range.

    Source: ``optax.clip_by_block_rms``; the clipping of Adafactor, arXiv 1804.04235, section 6.

    Example:
        >>> optim_wrapper = dict(
        ...     type='GClipOptimWrapper',
        ...     optimizer=dict(type='SGD', lr=0.02, momentum=0.9),
        ...     clip_grad=dict(type='BlockRMSClip', threshold=0.001))
    """

    thresholds = ('threshold',)
    source = 'optax.clip_by_block_rms'
    example = dict(threshold=0.01)

    def __init__(self, threshold: float = 1.0) -> None:
        check_number('threshold', threshold, low=0)
        self.threshold = threshold

    def decide(self, norms: Tensor, view: GradView, finite: Finite) -> tuple[Tensor, Tensor]:
        bounds = self.threshold * view.numels.sqrt()
        return torch.where(norms > bounds, bounds / norms, 1.0), bounds
