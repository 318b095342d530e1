"""Kernels that measure, scale and clamp many tensors in one launch, and kernels that decide.

On a GPU torch launches a kernel or two for each parameter, and one for each operation on a single
number. Here all norms are measured in one launch and all gradients scaled or clamped in another;
values that do not change are not written. For a global rule, one launch makes the decision
(:mod:`gclip_mm.clipping.kernels.decision`), and a fused optimizer scales.

The kernels need Triton (part of PyTorch's CUDA builds) and contiguous gradients
(:class:`~gclip_mm.clipping.kernels.multi_tensor.MultiTensor`). Where either is missing, clipping
falls back to torch. Both give the same numbers within rounding, and the tests compare them.
``GCLIP_TRITON=0`` in the environment turns the kernels off. For gradients in host memory
:mod:`gclip_mm.clipping.kernels.host_tensors` does the same, except for the decisions.

This package imports torch, NumPy, Triton and Numba, and only :mod:`gclip_mm.clipping.host` of
gclip_mm. It works on lists of tensors and knows no rule and no view. Modules whose name ends in
``_kernels`` and :mod:`~gclip_mm.clipping.kernels.orders` hold compiled code. They need Triton or
Numba and are imported at first use.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor

from .decision import KernelCall
from .host_tensors import HostTensors, can_take
from .host_updates import HostUpdates
from .multi_tensor import MultiTensor, Units
from .unit_tensors import UnitTensors

__all__ = [
    'HostTensors',
    'HostUpdates',
    'KernelCall',
    'MultiTensor',
    'UnitTensors',
    'Units',
    'also_on',
    'can_run_on',
    'can_take',
]

_device_types = {'cuda'}


def can_run_on(device: torch.device) -> bool:
    """Whether there are Triton kernels for a device."""
    return device.type in _device_types and _works_on(device)


@contextlib.contextmanager
def also_on(device_type: str) -> Iterator[None]:
    """Also use the kernels on this type of device: ``'cpu'``, under Triton's interpreter."""
    _device_types.add(device_type)
    try:
        yield
    finally:
        _device_types.discard(device_type)


@functools.cache
def _works_on(device: torch.device) -> bool:
    """Whether Triton is installed and can build a kernel (C compiler, recent GPU)."""
    if os.environ.get('GCLIP_TRITON') == '0' or importlib.util.find_spec('triton') is None:
        return False
    one: list[Tensor] = [torch.ones(1, device=device)]
    try:
        kernels = MultiTensor([Units(0, 1, 1)], one)
        kernels.take(one)
        # Order 3 uses the most features of the compiler.
        kernels.scale(kernels.norms(3.0))
        kernels.norms()
        kernels.clamp(None, None)
    except Exception as error:
        warnings.warn(
            f"Triton cannot run gclip_mm's kernels on {device} ({type(error).__name__}: {error}); "
            'clipping falls back to torch, more slowly. GCLIP_TRITON=0 silences this',
            stacklevel=2,
        )
        return False
    return True
