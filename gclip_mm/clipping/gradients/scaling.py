"""Multiplying gradients in place without rounding the coefficient to a half type."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter

import torch
from torch import Tensor

#: torch rounds a number, or a 0-d tensor on a device, to the type of the tensor that it multiplies:
#: a coefficient below 6e-8 becomes 0 in float16.
_HALF = {torch.float16, torch.bfloat16}


def has_half(tensors: Sequence[Tensor]) -> bool:
    """Whether any tensor is of a half type."""
    return not _HALF.isdisjoint(map(attrgetter('dtype'), tensors))


def scale_one(tensor: Tensor, coef: Tensor) -> None:
    """Multiply a tensor in place by a coefficient (0-d), or by several that broadcast to it.

    The product is computed in the wider of both types and rounded once.
    """
    coef = coef.to(tensor.device)
    if coef.ndim == 0 and tensor.dtype in _HALF:
        # Only a coefficient with an axis takes part in type promotion.
        coef = coef.reshape(1)
        tensor = tensor.reshape(1) if tensor.ndim == 0 else tensor
    tensor.mul_(coef)


def scale_each(tensors: Sequence[Tensor], coefs: Sequence[Tensor]) -> None:
    """:func:`scale_one` for N tensors and N coefficients."""
    for tensor, coef in zip(tensors, coefs, strict=True):
        scale_one(tensor, coef)
