"""One launch that decides: from norms to what the optimizer and the log get.

The kernels are in :mod:`gclip_mm.clipping.kernels.decision_kernels`.
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor

#: Names of kernels that could not be built; they are not tried again.
_broken: set[str] = set()


class KernelCall(NamedTuple):
    """A kernel of :mod:`~gclip_mm.clipping.kernels.decision_kernels`, and its own arguments.

    Attributes:
        name: of the kernel.
        arguments: tensors on the device, ints and floats; they follow the common arguments of
            all kernels.
        constants: what it is compiled for.
    """

    name: str
    arguments: tuple[Tensor | int | float, ...]
    constants: dict[str, Any]


def launch_decision(
    call: KernelCall,
    norms: Tensor,
    p: float,
    scale: Tensor | None,
    scaler_inf: Tensor | None,
    who: str,
) -> tuple[Tensor, Tensor] | None:
    """Launch a kernel that decides, and that updates the rule's state if the step is finite.

    Args:
        call: the kernel and its arguments.
        norms: (N,) p-norms of the gradients, with the loss scale.
        p: order of the norms.
        scale: 0-d, the loss scale, or None.
        scaler_inf: 0-d, not 0 where a GradScaler has found an infinite gradient, or None.
        who: name of the rule, for the warning.

    Returns:
        (2,) float32, the divisor of the gradients and ``found_inf``, and (6,) float64, the record;
        None if the kernel cannot be built; the first failure warns.
    """
    if call.name in _broken:
        return None
    fold = torch.empty(2, dtype=torch.float32, device=norms.device)
    record = torch.empty(6, dtype=torch.float64, device=norms.device)
    try:
        _launch(call, norms, p, scale, scaler_inf, fold, record)
    except Exception as error:
        _broken.add(call.name)
        warnings.warn(
            f'Triton cannot run the kernel {call.name} of {who} on {norms.device} '
            f'({type(error).__name__}: {error}); clipping falls back to torch, in more launches. '
            'GCLIP_TRITON=0 silences this',
            stacklevel=2,
        )
        return None
    return fold, record


def _launch(
    call: KernelCall,
    norms: Tensor,
    p: float,
    scale: Tensor | None,
    scaler_inf: Tensor | None,
    fold: Tensor,
    record: Tensor,
) -> None:
    """Write ``fold`` (2,), the divisor and ``found_inf``, and ``record`` (6,)."""
    from . import decision_kernels
    from .multi_tensor_kernels import on_device
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
