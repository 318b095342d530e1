"""Carry: keep the clipped-off part of a gradient and add it to the next one (U-Clip).

With ``D`` the buffer of a parameter, ``clip`` the rule and ``g`` the gradient of a step::

    u = clip(g + D)      the gradient that the optimizer gets
    D = g + D - u        the clipped-off part, for the next step

The sum of all updates then differs from the sum of all gradients by the buffer only, so that
clipped updates are unbiased on average. Carry costs one buffer of the gradients' size, which is
part of the rule's state, and two more passes over memory. A fused optimizer cannot apply the
coefficient.

Good for: thresholds so tight that most steps are clipped, with plain SGD. Bad for: spikes that are
errors (a bad image, a numerical problem), because carry applies them over many steps instead of
dropping them; momentum and Adam, which spread them further.

A non-finite step, skipped or zeroed, leaves the buffers unchanged.

Source: Elesedy and Hutter, "U-Clip: On-Average Unbiased Stochastic Gradient Clipping",
arXiv 2302.02971.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..base import Clipper, CoefClipper, Finite, Measure, Outcome
from ..gradients.view import GradView


class CarryState(NamedTuple):
    """The clipped-off part so far.

    Attributes:
        buffers: one tensor per parameter of the route, of its gradient's shape, float32 or wider;
            None before its first gradient.
    """

    buffers: list[Tensor | None]


class Carry(Clipper):
    """A wrapper around a rule; clips the sum of the gradient and the clipped-off part.

    ``carry=True`` among the keys of the inner rule selects it. Checkpoints store its state under
    the name of the inner rule.

    Args:
        inner: the rule that clips: global, per tensor or per element.
    """

    State = CarryState
    per_param = dict(buffers=None)
    elementwise_state = True
    carry = True

    def __init__(self, inner: Clipper) -> None:
        self.inner = inner
        self.norm_type = inner.norm_type
        self.drivers = inner.drivers

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def core(self) -> Clipper:
        return self.inner

    @property
    def never_increases(self) -> bool:
        """False: the sum with the buffer may be larger than the gradient."""
        return False

    def check_optimizer(self, optimizer: Optimizer) -> None:
        self.inner.check_optimizer(optimizer)

    def measure(self, view: GradView) -> Measure:
        if isinstance(self.inner, CoefClipper):
            return self.inner.measure(view)
        # Without the range of the inner rule: no kernel may clamp before the sum is computed.
        return Measure(*view.backend.element_norms())

    def clip(self, view: GradView, measure: Measure, finite: Finite) -> Outcome:
        if not finite.learns:
            outcome = self.inner.clip(view, measure, finite)
            if outcome.coef is not None:
                view.backend.scale_all(outcome.coef)
            return outcome._replace(coef=None)
        self.state = self.state or CarryState([None] * view.size)
        sums = self._add(view, finite)
        outcome = self._clip_sums(sums, view, finite)
        for total, grad in zip(sums, view.grads, strict=True):
            total.sub_(_masked(grad, finite))
        return outcome

    def _add(self, view: GradView, finite: Finite) -> list[Tensor]:
        """Add the gradients to their buffers in place; returns the buffers."""
        sums = []
        for slot, grad in zip(view.slots, view.grads, strict=True):
            buffer = self.state.buffers[slot]
            if buffer is None:
                dtype = torch.promote_types(grad.dtype, torch.float32)
                buffer = self.state.buffers[slot] = torch.zeros_like(grad, dtype=dtype)
            buffer.add_(_masked(grad, finite))
            sums.append(buffer)
        return sums

    def _clip_sums(self, sums: list[Tensor], view: GradView, finite: Finite) -> Outcome:
        """Write the clipped sums into the gradients."""
        if not isinstance(self.inner, CoefClipper):
            for total, grad in zip(sums, view.grads, strict=True):
                grad.copy_(total)
            return self.inner.clip(view, self.inner.measure(view), finite)
        # The sums are wider than the gradients: decide on the sums, and round once.
        wide = view.over(sums)
        coefs, outcome = self.inner.resolve(wide, self.inner.measure(wide), finite)
        each = [coefs] * len(sums) if coefs.ndim == 0 else coefs.unbind()
        for total, grad, coef in zip(sums, view.grads, each, strict=True):
            torch.mul(total, coef.to(total.device), out=grad)
        return outcome


def _masked(grad: Tensor, finite: Finite) -> Tensor:
    if finite.flag is None:
        return grad
    return torch.where(finite.flag.to(grad.device), grad, grad.new_zeros(()))
