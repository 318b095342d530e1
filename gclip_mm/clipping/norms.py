"""Norms of many tensors that neither overflow nor wait for the device.

Accumulation is in float32 or wider. A float32 sum of squares overflows from about 1.8e19 and loses
everything below about 1e-19, although the gradient itself is finite; such a norm is computed again
in float64. On a CPU that is a branch, which costs nothing there. On other devices a branch would
force the host to wait, and float64 accumulation is bound by memory bandwidth like float32, so it is
used throughout.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

# Below this a float32 norm may have lost terms whose squares are subnormal.
_TINY = 1e-15


def host(tensor: Tensor) -> np.ndarray | None:
    """A view of the tensor's own memory if that is host memory, else None (never a copy or a wait).

    Unlike ``tensor.item()`` it issues no device read, so a hot path may branch on it.
    """
    return tensor.detach().numpy() if tensor.device.type == 'cpu' else None


def accumulate_dtype(tensor: Tensor) -> torch.dtype:
    """The type in which the norm of a tensor is accumulated."""
    if tensor.dtype == torch.float64 or tensor.device.type != 'cpu':
        return torch.float64
    return torch.float32


def tensor_norms(tensors: list[Tensor], p: float = 2.0) -> Tensor:
    """The p-norm of each tensor.

    Args:
        tensors: N tensors of any shape and floating type, on one or several devices.
        p: order of the norm, greater than 0, or ``math.inf``.

    Returns:
        Tensor: shape (N,), float32 or float64, on the device of the first tensor.
    """
    first = tensors[0]
    dtype = accumulate_dtype(first)
    uniform = all(t.dtype == first.dtype and t.device == first.device for t in tensors)
    if p == math.inf and any(t.numel() == 0 for t in tensors):
        # The largest of no numbers is undefined for torch; the norm of nothing is 0.
        norms = [
            torch.linalg.vector_norm(t, p, dtype=accumulate_dtype(t))
            if t.numel()
            else torch.zeros((), dtype=accumulate_dtype(t), device=t.device)
            for t in tensors
        ]
    elif uniform:
        # Without a dtype torch's own code path is taken, bit for bit that of clip_grad_norm_.
        if first.dtype == dtype:
            norms = torch._foreach_norm(tensors, p)
        else:
            norms = torch._foreach_norm(tensors, p, dtype=dtype)
    else:
        norms = [torch.linalg.vector_norm(t, p, dtype=accumulate_dtype(t)) for t in tensors]
        widest = torch.float64 if any(n.dtype == torch.float64 for n in norms) else torch.float32
        norms = [n.to(first.device, widest) for n in norms]
    return _recompute_extremes(torch.stack(list(norms)), tensors, p)


def _recompute_extremes(norms: Tensor, tensors: list[Tensor], p: float) -> Tensor:
    """Replace, on the CPU, the float32 norms that over- or underflowed by float64 ones."""
    values = host(norms)
    if values is None or norms.dtype == torch.float64 or p == math.inf:
        return norms
    inside = (values > _TINY) & (values < np.inf)
    if inside.all():
        return norms
    wide = norms.double()
    for i in np.flatnonzero(~inside):
        wide[i] = torch.linalg.vector_norm(tensors[i], p, dtype=torch.float64)
    return fit(wide)


def fit(wide: Tensor) -> Tensor:
    """float64 -> float32 when every value survives it (CPU only), else unchanged."""
    values = host(wide)
    if values is None or wide.dtype != torch.float64:
        return wide
    finite = values[np.isfinite(values)]
    return wide.float() if ((finite == 0) | (finite > _TINY) & (finite < 1e19)).all() else wide


def combine(norms: Tensor, p: float = 2.0) -> Tensor:
    """The p-norm of everything, given the p-norms (N,) of its parts; a 0-d tensor."""
    if norms.numel() == 0:
        return norms.new_zeros(())
    total = torch.linalg.vector_norm(norms, p)
    value = host(total)
    if value is not None and total.dtype != torch.float64 and not _TINY < value < np.inf:
        total = fit(torch.linalg.vector_norm(norms.double(), p))
    return total
