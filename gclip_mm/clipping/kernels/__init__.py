"""Kernels that measure and scale many tensors in a launch, and that decide in another.

On a GPU the ordinary path launches a kernel or two for each parameter, and one for each operation
on a single number. Here all norms are measured in one launch and all gradients scaled or clamped in
another, and what keeps its value is not written. Of a rule with one coefficient for all gradients,
one launch makes the decision (:mod:`gclip_mm.clipping.kernels.decision`), and a fused optimizer
scales.

They need Triton (it comes with PyTorch's CUDA builds) and gradients that lie in memory as the
kernels expect (:class:`~gclip_mm.clipping.kernels.multi_tensor.MultiTensor`). Where either is
missing the ordinary path is taken; it gives the same numbers within rounding, and is what the tests
compare with. ``GCLIP_TRITON=0`` in the environment turns the kernels off. For gradients in host
memory :mod:`gclip_mm.clipping.kernels.host_tensors` has the like, but for the decisions.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import inspect
import os
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from .host_tensors import HostTensors, can_take
from .multi_tensor import MultiTensor, Units
from .unit_kernels import UnitKernels

if TYPE_CHECKING:
    from ..gradients.view import GradView

_device_types = {'cuda'}

# Older ones take one tensor at a time.
_MARKS_SEVERAL = 'Iterable' in str(
    inspect.signature(torch.autograd.graph.increment_version).parameters['tensor'].annotation
)


class KernelCall(NamedTuple):
    """A kernel of :mod:`~gclip_mm.clipping.kernels.decision_kernels`, and what a rule gives it.

    Attributes:
        name: of the kernel.
        arguments: tensors on the device, ints and floats, after those that all kernels get.
        constants: what it is built for.
    """

    name: str
    arguments: tuple[Tensor | int | float, ...]
    constants: dict[str, Any]


def whole_tensors(
    view: GradView, exact: bool = False, p: float = 2.0
) -> MultiTensor | HostTensors | None:
    """The kernels for the gradients of this step, each a unit; None: take the ordinary path.

    Args:
        view: the gradients.
        exact: norms are wanted to torch's bits where the ordinary path gives them.
        p: order of the norms that are wanted; on a CPU there are kernels for the 2-norm only.
    """
    kind = _kind(view)
    if kind is None or (kind is HostTensors and (exact or p != 2)):
        return None
    kernels = view.cache.get(('whole_tensors', kind))
    if kernels is None or not kernels.fits(view.grads):
        units = [Units(k, 1, grad.numel()) for k, grad in enumerate(view.grads)]
        kernels = view.cache['whole_tensors', kind] = kind(units, view.grads)
    return kernels if kernels.take(view.grads) else None


def units(view: GradView, order: list[int]) -> UnitKernels | None:
    """The kernels for the units of this step's gradients; None: take the ordinary path."""
    kind = _kind(view)
    if kind is None:
        return None
    kernels = view.cache.get(('units', kind))
    if kernels is None or not kernels.fits(view):
        kernels = view.cache['units', kind] = UnitKernels(view, order, kind)
    return kernels if kernels.take(view) else None


def mark_written(tensors: list[Tensor]) -> None:
    """Tell autograd that the kernels have changed tensors in place, as torch's operations do."""
    if _MARKS_SEVERAL:
        torch.autograd.graph.increment_version(tensors)
    else:
        for tensor in tensors:
            torch.autograd.graph.increment_version(tensor)


def _kind(view: GradView) -> type[MultiTensor] | type[HostTensors] | None:
    if view.sharding is not None:
        return None
    if can_run_on(view.grads[0].device):
        return MultiTensor
    return HostTensors if can_take(view.grads[0]) else None


def can_run_on(device: torch.device) -> bool:
    """Whether there are Triton kernels for a device."""
    return device.type in _device_types and _works_on(device)


@contextlib.contextmanager
def also_on(device_type: str) -> Iterator[None]:
    """Take the kernels on another kind of device: ``'cpu'``, under Triton's interpreter."""
    _device_types.add(device_type)
    try:
        yield
    finally:
        _device_types.discard(device_type)


@functools.cache
def _works_on(device: torch.device) -> bool:
    """Whether Triton is there and can build a kernel, which takes a C compiler and a recent GPU."""
    if os.environ.get('GCLIP_TRITON') == '0' or importlib.util.find_spec('triton') is None:
        return False
    one: list[Tensor] = [torch.ones(1, device=device)]
    try:
        kernels = MultiTensor([Units(0, 1, 1)], one)
        kernels.take(one)
        # Of the orders the one that asks most of the compiler.
        kernels.scale(kernels.norms(3.0))
        kernels.norms()
        kernels.clamp(None, None)
    except Exception as error:
        warnings.warn(
            f"Triton cannot run gclip_mm's kernels on {device} ({type(error).__name__}: {error}); "
            'clipping goes on without them, more slowly. GCLIP_TRITON=0 silences this',
            stacklevel=2,
        )
        return False
    return True
