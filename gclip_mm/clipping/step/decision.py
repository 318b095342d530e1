"""One launch from the norms of the gradients to what the optimizer and the log get.

A global rule that is folded into a fused optimizer has to come from N norms to the divisor and the
``found_inf`` of the optimizer and to the record of the step. By torch's operators that takes 22
small launches for ``NormClip``, 47 for ``AutoClip``, 70 for ``ZClip``. Here it takes one
(:mod:`gclip_mm.clipping.kernels.decision_kernels`), and one before it to measure, whatever the
number of tensors and the order of the norm. torch's operators are the fallback, and what the tests
compare with. Where gradients do not fit the kernels torch measures, in more launches (docs/gpu.md).
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ..base import GlobalClipper, Measure, Outcome
from ..kernels.decision import launch_decision
from .parameters import RoutedView


class Decision(NamedTuple):
    """The result of a step; all of it on the device, without a host read.

    Attributes:
        parts: (N,) the norms of the gradients, with the loss scale.
        divisor: 0-d float32, what the optimizer has to divide the gradients by, loss scale
            included; inf where it exceeds float32.
        found_inf: 0-d float32, 1 where the step must not be taken, else 0.
        record: (6,) float64 (:mod:`gclip_mm.clipping.step.record`).
    """

    parts: Tensor
    divisor: Tensor
    found_inf: Tensor
    record: Tensor

    def measure(self, scale: Tensor | None) -> Measure:
        """What was read of the gradients, without the loss scale ``scale`` (0-d)."""
        parts = self.parts if scale is None else self.parts / scale.to(self.parts.device)
        return Measure(self.record[0], parts)

    @property
    def outcome(self) -> Outcome:
        """What the rule decided; the optimizer applies the coefficient."""
        _, post, coef, threshold, clipped, _ = self.record.unbind()
        return Outcome(coef, post, threshold, clipped, 1)


def decide(part: RoutedView, scale: Tensor | None, scaler_inf: Tensor | None) -> Decision | None:
    """Measure and decide, and update the state of the rule if the step is finite.

    Args:
        part: the gradients, on a device that has kernels, and their rule.
        scale: 0-d, the loss scale that they carry, or None.
        scaler_inf: not 0 where a GradScaler has found an infinite gradient, or None.

    Returns:
        None if torch's operators have to decide.
    """
    rule = part.clipper
    make_call = None if rule is None else rule.shortcut('decision_kernel')
    if make_call is None or not isinstance(rule, GlobalClipper):
        return None
    device = part.view.grads[0].device
    call = make_call(device)
    given = [tensor for tensor in (scale, scaler_inf) if tensor is not None]
    if call is None or any(tensor.device != device for tensor in given):
        return None
    parts = rule.norms(part.view)
    launched = launch_decision(call, parts, rule.norm_type, scale, scaler_inf, rule.name)
    if launched is None:
        return None
    fold, record = launched
    divisor, found_inf = fold.unbind()
    return Decision(parts, divisor, found_inf, record)
