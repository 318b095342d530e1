"""The record of a step: six numbers that stay on the device until somebody asks for them."""

from __future__ import annotations

import torch
from torch import Tensor

#: Names of the numbers of a record, in their order in the tensor: the log keys.
LOG_KEYS = (
    'grad_norm',
    'grad_norm_post',
    'clip_coef',
    'clip_threshold',
    'clip_fraction',
    'nonfinite',
)


def make_record(device: torch.device, *values: Tensor | float) -> Tensor:
    """Pack the numbers of a step, in the order of ``LOG_KEYS``, into a float64 tensor (6,)."""
    return _pack_on_host(values) if device.type == 'cpu' else pack_on_device(device, *values)


def _pack_on_host(values: tuple[Tensor | float, ...]) -> Tensor:
    # tolist() reads host memory without issuing a device read, as item() would.
    numbers = [float(v.tolist()) if isinstance(v, Tensor) else v for v in values]
    return torch.tensor(numbers, dtype=torch.float64)


def pack_on_device(device: torch.device, *values: Tensor | float) -> Tensor:
    """:func:`make_record` without looking at a number."""
    parts = [
        v.to(device, torch.float64).reshape(())
        if isinstance(v, Tensor)
        # full() writes the number with a kernel; tensor() would copy it and wait.
        else torch.full((), v, dtype=torch.float64, device=device)
        for v in values
    ]
    return torch.stack(parts)


def record_to_dict(record: Tensor) -> dict[str, float]:
    """The numbers of a record by name; this is the read that makes the host wait for the device."""
    return dict(zip(LOG_KEYS, record.tolist(), strict=True))
