"""One launch from the norms of the gradients to what the optimizer and the log get.

A rule with one coefficient, folded into a fused optimizer, has to come from N norms to the divisor
and the ``found_inf`` of the optimizer and to the record of the step. By torch's operators that is
22 small launches for ``NormClip``, 47 for ``AutoClip``, 70 for ``ZClip``; here it is one
(:mod:`gclip_mm.clipping.kernels.decision_kernels`), and one before it to measure, whatever the
number of tensors and the order of the norm. That road stays as the fallback, and as the oracle of
the tests. Where gradients do not fit the kernels torch measures, in more launches (docs/gpu.md).
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..base import Measure, Outcome
from . import KernelCall

if TYPE_CHECKING:
    from ..gradients.view import GradView

#: Kernels that could not be built; they are not tried again.
_broken: set[str] = set()


class Decision(NamedTuple):
    """What came of a step; all of it on the device, and read by nobody.

    Attributes:
        measure: what was read of the gradients.
        outcome: what the rule decided. The coefficient is not applied yet.
        divisor: 0-d float32, what the optimizer has to divide gradients by, loss scale included;
            inf where it is more than float32 holds.
        found_inf: 0-d float32, 1 where the step is not to be taken, else 0.
        record: (6,) float64 (:mod:`gclip_mm.clipping.step.record`).
    """

    measure: Measure
    outcome: Outcome
    divisor: Tensor
    found_inf: Tensor
    record: Tensor


def decide(view: GradView, scale: Tensor | None, scaler_inf: Tensor | None) -> Decision | None:
    """Measure and decide, and let the rule learn from the step if it is a finite one.

    Args:
        view: the gradients, on a device that has kernels; the rule scales all of them together.
        scale: 0-d, the loss scale that they carry, or None.
        scaler_inf: 0-d, not 0 where a GradScaler has found an infinite gradient, or None.

    Returns:
        None if this rule has to decide the ordinary way.
    """
    rule = view.route.clipper
    device = view.grads[0].device
    if 'decision_kernel' not in vars(type(rule)):
        # A class that has inherited the kernel may have changed the rule.
        return None
    call = rule.decision_kernel(device)
    given = [tensor for tensor in (scale, scaler_inf) if tensor is not None]
    if call is None or call.name in _broken or any(t.device != device for t in given):
        return None

    parts = rule.norms(view)
    fold = torch.empty(2, dtype=torch.float32, device=device)
    record = torch.empty(6, dtype=torch.float64, device=device)
    try:
        _launch(call, parts, rule.norm_type, scale, scaler_inf, fold, record)
    except Exception as error:
        _broken.add(call.name)
        warnings.warn(
            f'Triton cannot run the kernel {call.name} of {type(rule).__name__} on {device} '
            f'({type(error).__name__}: {error}); clipping goes on without it, in more launches. '
            'GCLIP_TRITON=0 silences this',
            stacklevel=2,
        )
        return None
    norm, post, coef, threshold, clipped, _ = record.unbind()
    divisor, found_inf = fold.unbind()
    outcome = Outcome(coef, post, threshold, clipped, 1)
    return Decision(Measure(norm, parts), outcome, divisor, found_inf, record)


def _launch(
    call: KernelCall,
    norms: Tensor,
    p: float,
    scale: Tensor | None,
    scaler_inf: Tensor | None,
    fold: Tensor,
    record: Tensor,
) -> None:
    """Write ``fold`` (2,), which is the divisor and ``found_inf``, and ``record`` (6,).

    Args:
        call: the rule's kernel.
        norms: (N,), which the loss scale is still in.
        p: their order.
        scale: as :func:`decide` has it.
        scaler_inf: the same.
        fold: float32.
        record: float64.
    """
    from . import decision_kernels
    from .launch import on_device
    from .orders import bits_of, kind_of

    own = [bits_of(value) if isinstance(value, float) else value for value in call.arguments]
    with on_device(norms.device):
        getattr(decision_kernels, call.name)[(1,)](
            norms,
            len(norms),
            bits_of(p),
            norms if scale is None else scale,
            norms if scaler_inf is None else scaler_inf,
            fold,
            record,
            *own,
            KIND=kind_of(p),
            HAS_SCALE=scale is not None,
            HAS_INF=scaler_inf is not None,
            BLOCK=decision_kernels.BLOCK,
            **call.constants,
        )
