"""Norms of many tensors, without overflow and without waiting for the device.

Norms accumulate in float32 or wider. A float32 sum of squares overflows from about 1.8e19 and
loses everything below about 1e-19, although the gradient itself is finite. Such a norm is
recomputed in float64. On a CPU that is a branch, which costs nothing. On other devices a branch
would make the host wait, and float64 accumulation is bound by memory bandwidth like float32, so
float64 is used throughout.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from operator import attrgetter

import torch
from torch import Tensor

from ...compat import aminmax, foreach_norm
from ..host import host, np
from .rows import WIDE, RowNorms, row_norms

# A norm whose p-th power is below this may have lost terms whose own powers are subnormal.
_TINY_POWERS = {torch.float32: 1e-30, torch.float64: 1e-290}


def quiet() -> contextlib.AbstractContextManager[None]:
    """Silence NumPy's warnings on division by zero and NaN, on which torch gives none."""
    return contextlib.nullcontext() if np is None else np.errstate(all='ignore')


def accumulate_dtype(tensor: Tensor) -> torch.dtype:
    """The type in which the norm of a tensor is accumulated."""
    if tensor.dtype == torch.float64 or tensor.device.type != 'cpu' or np is None:
        return torch.float64
    return torch.float32


def tensor_norms(tensors: list[Tensor], p: float = 2.0, exact: bool = True) -> Tensor:
    """The p-norm of each tensor.

    Args:
        tensors: N tensors of any shape and floating type, on one or several devices.
        p: order of the norm, greater than 0, or ``math.inf``.
        exact: on a CPU bit-identical to ``torch.nn.utils.clip_grad_norm_``. Otherwise large tensors
            may be read by rows (:mod:`gclip_mm.clipping.gradients.rows`), which is as accurate and
            uses all cores.

    Returns:
        Tensor: shape (N,), float32 or float64, on the device of the first tensor.
    """
    rows = None if exact or p != 2 else read_by_rows(tensors)
    return finish_norms(_each_norm(tensors, p) if rows is None else rows.norms(tensors), tensors, p)


def read_by_rows(tensors: list[Tensor], width: int = WIDE) -> RowNorms | None:
    """The norms of the rows of all large tensors; None where reading by rows gains nothing."""
    if accumulate_dtype(tensors[0]) != torch.float32 or not _is_uniform(tensors):
        return None
    return row_norms(tensors, width)


def finish_norms(norms: Sequence[Tensor], tensors: list[Tensor], p: float = 2.0) -> Tensor:
    """N norms, 0-d, as one tensor (N,), free of over- and underflow."""
    return _recompute_extremes(torch.stack(list(norms)), tensors, p)


def _each_norm(tensors: list[Tensor], p: float) -> Sequence[Tensor]:
    first = tensors[0]
    if p == math.inf and (first.device.type == 'cpu' or any(t.numel() == 0 for t in tensors)):
        norms = [_largest(tensor) for tensor in tensors]
    elif _is_uniform(tensors):
        dtype = accumulate_dtype(first)
        # Without a dtype torch's result is bit-identical to clip_grad_norm_.
        if first.dtype == dtype:
            return torch._foreach_norm(tensors, p)
        return foreach_norm(tensors, p, dtype=dtype)
    else:
        norms = [torch.linalg.vector_norm(t, p, dtype=accumulate_dtype(t)) for t in tensors]
    widest = torch.float64 if any(n.dtype == torch.float64 for n in norms) else torch.float32
    return [n.to(first.device, widest) for n in norms]


def _is_uniform(tensors: list[Tensor]) -> bool:
    """Whether all tensors have one type and lie on one device."""
    # Sets of values: comparing tensors in pairs costs as much as the norms of small tensors.
    return (
        len(set(map(attrgetter('dtype'), tensors))) == 1
        and len(set(map(Tensor.get_device, tensors))) == 1
    )


def _largest(tensor: Tensor) -> Tensor:
    """The largest absolute value, 0-d; NaN if any element is NaN; 0 if there are no elements."""
    dtype = accumulate_dtype(tensor)
    if tensor.numel() == 0:
        # Undefined in torch; the norm of an empty tensor is 0.
        return torch.zeros((), dtype=dtype, device=tensor.device)
    if tensor.device.type != 'cpu' or tensor.numel() < 4096:
        norm: Tensor = torch.linalg.vector_norm(tensor, math.inf, dtype=dtype)
        return norm
    # torch's norm of order inf is ten times as slow.
    low, high = aminmax(tensor)
    return torch.maximum(-low, high).abs_().to(dtype)


def _recompute_extremes(norms: Tensor, tensors: list[Tensor], p: float) -> Tensor:
    """On a CPU, replace norms that over- or underflowed with float64 norms."""
    values = host(norms)
    if values is None or p == math.inf:
        return norms
    inside = _is_safe(norms, values, p)
    if inside.all():
        return norms
    wide = norms.double()
    for i in np.flatnonzero(~inside):
        wide[i] = _careful_norm(tensors[i], p)
    return wide if norms.dtype == torch.float64 else fit(wide)


def _is_safe(norms: Tensor, values: np.ndarray, p: float) -> np.ndarray:
    """For each norm, whether no power over- or underflowed in its computation."""
    safe: np.ndarray = (values > _TINY_POWERS[norms.dtype] ** (1.0 / p)) & (values < np.inf)
    return safe


def _careful_norm(tensor: Tensor, p: float) -> Tensor:
    """The p-norm in float64, computed relative to the largest element to avoid overflow."""
    if tensor.numel() == 0:
        return torch.zeros((), dtype=torch.float64)
    top = _largest(tensor).double()
    value = float(host(top))
    if value == 0 or not math.isfinite(value):
        # If the largest element is zero, inf or NaN, so is the norm.
        return top
    norm: Tensor = torch.linalg.vector_norm(tensor.double() / top, p) * top
    return norm


def fit(wide: Tensor) -> Tensor:
    """Convert float64 to float32 if every value fits (CPU only); otherwise return it unchanged."""
    values = host(wide)
    if values is None or wide.dtype != torch.float64:
        return wide
    finite = values[np.isfinite(values)]
    return wide.float() if ((finite == 0) | (finite > 1e-15) & (finite < 1e19)).all() else wide


def combine(norms: Tensor, p: float = 2.0, exact: bool = True) -> Tensor:
    """The p-norm (0-d) of a whole, given the p-norms (N,) of its parts.

    Args:
        norms: norms of the parts, (N,).
        p: order of the norms.
        exact: on a CPU bit-identical to PyTorch's result.
    """
    if norms.numel() == 0:
        return norms.new_zeros(())
    parts = None if exact or p != 2 or norms.dtype != torch.float64 else host(norms)
    if parts is not None:
        # For so few numbers PyTorch's call overhead dominates.
        with quiet():
            total = torch.from_numpy(np.sqrt(np.square(parts).sum(keepdims=True)).reshape(()))
    else:
        total = torch.linalg.vector_norm(norms, p)
    value = host(total)
    if value is None or p == math.inf or _is_safe(total, value, p):
        return total
    wide = _careful_norm(norms, p)
    return wide if total.dtype == torch.float64 else fit(wide)
