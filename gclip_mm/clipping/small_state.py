"""Arithmetic on small state: a few numbers for a rule, or a few for each parameter.

A threshold takes a dozen operations on single numbers. In host memory they run as
Python or NumPy arithmetic, which costs a tenth of the same tensor operations. On another device
they have to be tensor operations, so that the host never waits. :func:`scalars` and
:func:`columns` return the numbers in the suitable form, with matching functions, so that a rule
writes its formula once.
:func:`remember` writes the results back into the state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .base import Finite
from .gradients.view import GradView
from .host import host, np


def scalars(norm: Tensor, *fields: Tensor) -> tuple[list[Any], Callable[[Any, Any, Any], Any]]:
    """The numbers in 0-d tensors, and ``where(condition, a, b)`` for them.

    Returns:
        Python floats where the tensors are in host memory, otherwise 0-d float64 tensors on the
        device of ``norm``.
    """
    views = [host(tensor) for tensor in (norm, *fields)]
    if any(view is None for view in views):
        tensors = [tensor.to(norm.device, torch.float64) for tensor in (norm, *fields)]
        return tensors, torch.where
    return [float(view) for view in views], _choose


def _choose(condition: bool, a: float, b: float) -> float:
    return a if condition else b


def columns(norms: Tensor, view: GradView, *fields: Tensor) -> tuple[list[Any], ModuleType]:
    """Numbers of the N gradients of a view, and the module (NumPy or torch) that computes on them.

    Args:
        norms: (N,), one number a gradient.
        view: the view.
        fields: state with one number per parameter of the route, (view.size,).

    Returns:
        float64 arrays (N,), or float64 tensors (N,) on the device of ``norms``.
    """
    views = [host(tensor) for tensor in (norms, *fields)]
    if any(array is None for array in views):
        rows = [field.to(norms.device, torch.float64) for field in fields]
        if not view.is_whole:
            rows = [row[view.index.to(row.device)] for row in rows]
        return [norms.double(), *rows], torch
    rows = views[1:] if view.is_whole else [array[view.slot_array] for array in views[1:]]
    return [array.astype(np.float64) for array in (views[0], *rows)], np


def remember(
    fields: Sequence[Tensor],
    values: Sequence[Any],
    finite: Finite,
    view: GradView | None = None,
) -> None:
    """Write new numbers into the state in place, except where the step is not finite.

    A rule calls this last: the tensors that :func:`scalars` and :func:`columns` returned may share
    memory with the state.

    Args:
        fields: the state, 0-d, or (view.size,) if a view is given.
        values: as many numbers, arrays or tensors, (N,) if a view is given.
        finite: whether the step is finite.
        view: the gradients that the values belong to.
    """
    if not finite.learns:
        return
    mask = finite.flag
    whole = view is None or view.is_whole
    for field, value in zip(fields, values, strict=True):
        if not isinstance(value, Tensor):
            place = ... if view is None or whole else view.slot_array
            field.detach().numpy()[place] = value
            continue
        index = None if view is None or whole else view.index.to(field.device)
        value = value.to(field.device, field.dtype)
        if mask is not None:
            old = field if index is None else field[index]
            value = torch.where(mask.to(field.device), value, old)
        if index is None:
            field.copy_(value)
        else:
            field.index_copy_(0, index, value)


def to_tensor(value: Any, like: Tensor) -> Tensor:
    """A number or array as a float64 tensor on the device of ``like``; a tensor stays as it is."""
    if isinstance(value, Tensor):
        return value
    return torch.as_tensor(value, dtype=torch.float64, device=like.device)
