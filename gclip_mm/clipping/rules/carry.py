"""Carry: what clipping cuts off is kept and added to the next gradient (U-Clip).

With ``D`` the buffer of a parameter, ``clip`` the rule and ``g`` the gradient of a step::

    u = clip(g + D)      the gradient that the optimizer gets
    D = g + D - u        what was cut off, for the next step

The sum of all updates then differs from the sum of all gradients by no more than the buffer holds,
so that clipped updates are unbiased on average. It costs one buffer of the gradients' size, which
is part of the rule's state, and two more passes over memory; a fused optimizer cannot take the
coefficient over.

Good for: thresholds so tight that most steps are clipped, with plain SGD. Bad for: spikes that are
errors (a bad image, a numerical accident), which are not thrown away but fed in over many steps;
momentum and Adam, which smear them out further.

A step that is not finite, and skipped or zeroed, leaves the buffers as they were.

Source: Elesedy and Hutter, "U-Clip: On-Average Unbiased Stochastic Gradient Clipping",
arXiv 2302.02971.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..gradients.norms import host, tensor_norms

if TYPE_CHECKING:
    from ..gradients.view import GradView


class CarryState(NamedTuple):
    """What was cut off so far.

    Attributes:
        buffers: for each parameter of the route a tensor of its gradient's shape, float32 or wider,
            or None before its first gradient.
    """

    buffers: list[Tensor | None]

    fresh = dict(buffers=None)


def carried(state: CarryState, view: GradView, ok: Tensor | None) -> list[Tensor]:
    """Add the gradients of a view to their buffers; the sums, which are the buffers themselves.

    Where ``ok`` is False nothing is added.
    """
    sums = []
    for slot, grad in zip(view.slots, view.grads, strict=True):
        buffer = state.buffers[slot]
        if buffer is None:
            dtype = torch.promote_types(grad.dtype, torch.float32)
            buffer = state.buffers[slot] = torch.zeros_like(grad, dtype=dtype)
        buffer.add_(_masked(grad, ok))
        sums.append(buffer)
    return sums


def drop_what_passed(sums: list[Tensor], view: GradView, ok: Tensor | None) -> None:
    """Take from the buffers what the clipped gradients now hold; the rest is carried."""
    for total, grad in zip(sums, view.grads, strict=True):
        total.sub_(_masked(grad, ok))


def norms_of(sums: list[Tensor], view: GradView, p: float) -> Tensor:
    """The p-norm of each sum (N,), over all processes that hold parts of it."""
    norms = tensor_norms(sums, p)
    return norms if view.sharding is None else view.sharding.norms(norms, p)


def _masked(grad: Tensor, ok: Tensor | None) -> Tensor:
    # What the host knows to be finite, or not to be, never gets here with a mask.
    if ok is None or host(ok) is not None:
        return grad
    return torch.where(ok.to(grad.device), grad, grad.new_zeros(()))
