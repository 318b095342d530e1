"""Arithmetic on small state: a few numbers for a rule, or a few for each parameter.

A threshold takes a dozen operations on single numbers. On the host's own memory they are Python or
NumPy arithmetic, which costs a tenth of as many tensor operations; on another device they have to
be tensor operations, so that the host never waits. :func:`scalars` and :func:`columns` hand out the
numbers in the form that fits, with the functions to go with it, so that a rule writes its formula
once. :func:`remember` puts results back where they came from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .gradients.norms import host, np

if TYPE_CHECKING:
    from .gradients.view import GradView


def learns(ok: Tensor | None) -> bool:
    """Whether a step may enter the state, as far as the host knows (see :meth:`Clipper.clip`)."""
    known = None if ok is None else host(ok)
    return known is None or bool(known)


def scalars(norm: Tensor, *fields: Tensor) -> tuple[list[Any], Callable[[Any, Any, Any], Any]]:
    """The numbers in 0-d tensors, and ``where(condition, a, b)`` for them.

    Returns:
        Python floats where the host owns the memory, otherwise 0-d float64 tensors on the device
        of ``norm``.
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
        fields: state with one number for each parameter of the route, (view.size,).

    Returns:
        float64 arrays (N,), or float64 tensors (N,) on the device of ``norms``.
    """
    views = [host(tensor) for tensor in (norms, *fields)]
    if any(array is None for array in views):
        rows = [field.to(norms.device, torch.float64) for field in fields]
        if not view.is_whole:
            rows = [row[view.index.to(row.device)] for row in rows]
        return [norms.double(), *rows], torch
    rows = views[1:] if view.is_whole else [array[_slots(view)] for array in views[1:]]
    return [array.astype(np.float64) for array in (views[0], *rows)], np


def remember(
    fields: Sequence[Tensor],
    values: Sequence[Any],
    ok: Tensor | None,
    view: GradView | None = None,
) -> None:
    """Write new numbers into the state in place, except where ``ok`` is False.

    The last thing a rule does: the tensors that :func:`scalars` and :func:`columns` gave it may be
    the state itself.

    Args:
        fields: the state, 0-d, or (view.size,) if a view is given.
        values: as many numbers, arrays or tensors, (N,) if a view is given.
        ok: see :meth:`~gclip_mm.clipping.base.Clipper.clip`.
        view: whose gradients the values belong to.
    """
    if not learns(ok):
        return
    mask = None if ok is None or host(ok) is not None else ok
    whole = view is None or view.is_whole
    for field, value in zip(fields, values, strict=True):
        if not isinstance(value, Tensor):
            field.detach().numpy()[... if whole else _slots(view)] = value
            continue
        index = None if whole else view.index.to(field.device)
        value = value.to(field.device, field.dtype)
        if mask is not None:
            old = field if whole else field[index]
            value = torch.where(mask.to(field.device), value, old)
        if whole:
            field.copy_(value)
        else:
            field.index_copy_(0, index, value)


def to_tensor(value: Any, like: Tensor) -> Tensor:
    """A result of such arithmetic as a float64 tensor on the device of ``like``."""
    if isinstance(value, Tensor):
        return value
    return torch.as_tensor(value, dtype=torch.float64, device=like.device)


def _slots(view: GradView) -> np.ndarray:
    if 'slots' not in view.cache:
        view.cache['slots'] = np.array(view.slots)
    return view.cache['slots']
