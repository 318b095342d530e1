"""What differs between installations: which packages there are, and in which release.

This is the only module that asks for a version. It decides when it is imported: what a step calls
is a function of torch, or a replacement for one that an older torch lacks. docs/compatibility.md
has the releases that were run.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor


def is_installed(package: str) -> bool:
    """Whether a top-level package can be found; it is not imported."""
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):
        # The import is blocked, as tests do and as zipped applications may.
        return False


#: Optional packages, and what does not work without them.
_OPTIONAL = {
    'mmengine': 'the optimizer wrappers and hooks for MMEngine',
    'mmdet': 'the models, data sets and scene graphs for MMDetection',
}


@functools.cache
def is_usable(module: str) -> bool:
    """Whether a module of an optional package can be imported; imports it.

    A package that is found but fails to import (MMDetection without MMCV, or with a release of MMCV
    that it refuses) counts as not installed, with a warning that quotes the error.

    Args:
        module: dotted name of a module in a package of ``_OPTIONAL``.
    """
    package = module.partition('.')[0]
    if not is_installed(package):
        return False
    try:
        importlib.import_module(module)
    # MMDetection checks versions by assert; a shared library that does not load is an OSError.
    except Exception as error:
        warnings.warn(
            f'{package} is installed but cannot be imported ({type(error).__name__}: {error}). '
            f'gclip_mm works without {_OPTIONAL[package]}',
            stacklevel=2,
        )
        return False
    return True


# -- torch ---------------------------------------------------------------------------------------
def _release(version: str) -> tuple[int, int]:
    """``'2.13.0+cpu'`` as (2, 13)."""
    major, minor = version.split('.')[:2]
    return int(major), int(minor)


#: The release of torch as (major, minor).
TORCH = _release(torch.__version__)

#: Whether ``torch.load`` accepts only the classes on its allow-list by default.
LOADS_WEIGHTS_ONLY = TORCH >= (2, 6)

#: What ``torch.load`` takes beside the path so that tensors stay on the disk.
LOAD_MAPPED: dict[str, Any] = {'mmap': True} if TORCH >= (2, 1) else {}

#: The loss scaler. Before torch 2.3 there was one for CUDA only, which is off on a CPU.
GradScaler: Any = getattr(torch.amp, 'GradScaler', None) or torch.cuda.amp.GradScaler

#: Whether a loss scaler works on a CPU, and autocast takes float16 there.
SCALES_ON_CPU = hasattr(torch.amp, 'GradScaler')

if TORCH >= (2, 4):
    foreach_norm: Callable[..., Sequence[Tensor]] = torch._foreach_norm
else:

    def foreach_norm(tensors: list[Tensor], p: float, dtype: torch.dtype) -> Sequence[Tensor]:
        """``torch._foreach_norm`` with a dtype, which torch takes since 2.4."""
        return [torch.linalg.vector_norm(tensor, p, dtype=dtype) for tensor in tensors]


if hasattr(torch, '_foreach_copy_'):
    foreach_copy_: Callable[[list[Tensor], list[Tensor]], None] = torch._foreach_copy_
else:

    def foreach_copy_(targets: list[Tensor], sources: list[Tensor]) -> None:
        """``torch._foreach_copy_``, which torch has since 2.1."""
        with torch.no_grad():
            for target, source in zip(targets, sources, strict=True):
                target.copy_(source)


if TORCH >= (2, 1):
    foreach_scale_: Callable[[list[Tensor], Tensor], None] = torch._foreach_mul_
else:

    def foreach_scale_(tensors: list[Tensor], factor: Tensor) -> None:
        """``torch._foreach_mul_`` by one tensor (0-d), which torch takes since 2.1."""
        torch._foreach_mul_(tensors, [factor] * len(tensors))


if TORCH >= (2, 5):

    def mark_written(tensors: list[Tensor]) -> None:
        """Tell autograd that kernels changed tensors in place, as torch's operations do."""
        torch.autograd.graph.increment_version(tensors)

elif TORCH >= (2, 1):

    def mark_written(tensors: list[Tensor]) -> None:
        """Tell autograd that kernels changed tensors in place, as torch's operations do."""
        for tensor in tensors:
            torch.autograd.graph.increment_version(tensor)

else:

    @torch.no_grad()
    def mark_written(tensors: list[Tensor]) -> None:
        """Tell autograd that kernels changed tensors in place, as torch's operations do."""
        for tensor in tensors:
            # A view shares the counter; an operation on no element changes nothing else.
            tensor.as_strided((0,), (1,)).zero_()


#: Whether torch.compile is tracing.
is_compiling: Callable[[], bool] = (
    torch.compiler.is_compiling if TORCH >= (2, 3) else torch._utils.is_compiling
)


if TORCH >= (2, 4):
    aminmax: Callable[[Tensor], tuple[Tensor, Tensor]] = torch.aminmax
else:

    def aminmax(tensor: Tensor) -> tuple[Tensor, Tensor]:
        """``torch.aminmax``, which older releases lack for float16 on a CPU."""
        if tensor.dtype != torch.float16:
            return torch.aminmax(tensor)
        low, high = torch.aminmax(tensor.float())
        return low.half(), high.half()


def untraced(function: Callable[..., Any], recursive: bool, reason: str) -> Any:
    """The function, called by compiled code without being traced.

    Args:
        function: any function.
        recursive: whether the functions that it calls are not traced either.
        reason: shown by torch where it matters.
    """
    if not hasattr(torch, 'compiler'):
        # torch 2.0, whose compiler does not trace the step of an optimizer. As below, the result
        # is a function, which takes attributes; a bound method does not.
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        return call
    # functools.wraps copies the marks of a disabled function, and torch would unwrap ours by them.
    for mark in ('_torchdynamo_orig_callable', 'get_compiler_config'):
        vars(getattr(function, '__func__', function)).pop(mark, None)
    disable: Any = torch.compiler.disable
    # Before torch 2.8 it took no reason.
    options = {'reason': reason} if 'reason' in inspect.signature(disable).parameters else {}
    return disable(function, recursive=recursive, **options)


def dtensor_class() -> Any:
    """torch's ``DTensor``; None before torch 2.4, whose DTensor lacks what clipping needs."""
    if TORCH >= (2, 5):
        from torch.distributed.tensor import DTensor
    elif TORCH >= (2, 4):
        from torch.distributed._tensor import DTensor
    else:
        return None
    return DTensor


def flat_handle(module: Any) -> Any:
    """What holds the flat parameter of an FSDP1 module; None if it has no parameters."""
    if TORCH >= (2, 1):
        return module._handle
    (handle,) = module._handles or (None,)
    return handle


def scaler_options(scaler: Any, device: str) -> dict[str, Any]:
    """The arguments that name the device of a loss scaler class.

    Args:
        scaler: ``GradScaler``, or FSDP's ``ShardedGradScaler``.
        device: such as ``'cpu'``.
    """
    return {'device': device} if 'device' in inspect.signature(scaler).parameters else {}


#: The first release of torch with a fused kernel for an optimizer.
_FUSED_ON_CPU = dict.fromkeys(('SGD', 'Adam', 'AdamW', 'Adagrad'), (2, 4))
_FUSED_ON_GPU = {'Adam': (2, 0), 'AdamW': (2, 0), 'SGD': (2, 3)}


def lacks_fused(optimizer: str, device: str) -> bool:
    """Whether this torch has no fused kernel for an optimizer that newer releases run fused.

    Args:
        optimizer: name of a class of ``torch.optim``.
        device: type of the device of its parameters.
    """
    since = (_FUSED_ON_CPU if device == 'cpu' else _FUSED_ON_GPU).get(optimizer)
    return since is not None and since > TORCH


# -- NumPy ---------------------------------------------------------------------------------------
def numpy_multiarray() -> ModuleType:
    """The module that NumPy's pickles name: ``numpy._core.multiarray`` since NumPy 2."""
    import numpy as np

    # NumPy 1.26 has a package numpy._core as well, for the pickles of NumPy 2 only.
    core = 'numpy.core' if np.__version__.startswith('1.') else 'numpy._core'
    return importlib.import_module(f'{core}.multiarray')
