"""Noticing a training loop that never calls the ``step`` that clips.

Some loops call other methods (SAM's ``first_step`` and ``second_step``), some step by another
optimizer over the same parameters, and some keep their gradients outside ``.grad``. Nothing is
clipped then, and no error occurs. After a few such iterations there is one warning.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ....compat import is_compiling
from .inspection import inner_optimizers

#: Iterations in a row before the warning.
PATIENCE = 3


class Bystander:
    """Counts the iterations that pass an optimizer by without clipping.

    Args:
        optimizer: the optimizer that is clipped.
        is_stepping: whether its ``step`` is running; optimizers that step within it are its own.
    """

    def __init__(self, optimizer: Optimizer, is_stepping: Callable[[], bool]) -> None:
        self._optimizer = weakref.ref(optimizer)
        self._is_stepping = is_stepping
        self._foreign = self._empty = 0
        self._warned = False
        self._params: set[int] = set()
        _watch(self)

    def stop(self) -> None:
        """No longer watch other optimizers."""
        _unwatch(self)

    # -- what is noticed -------------------------------------------------------------------------
    def stepped(self, has_gradients: bool) -> None:
        """The optimizer's own step; ``has_gradients``: whether any parameter has a ``.grad``."""
        self._foreign = 0
        self._empty = 0 if has_gradients else self._empty + 1
        optimizer = self._optimizer()
        if self._empty == PATIENCE and optimizer is not None:
            self._warn(
                f'{PATIENCE} steps of {type(optimizer).__name__} in a row had no gradient in any '
                '.grad, so that nothing was clipped. '
                + (
                    'It updates the parameters during the backward pass (fused_backward), which '
                    'gclip_mm cannot clip: use its own clipping'
                    if hasattr(optimizer, 'fused_backward')
                    else 'Gradients that are kept elsewhere (main_grad, flat buffers) cannot be '
                    'clipped: attach to the optimizer that reads .grad'
                )
            )

    def other_stepped(self, other: Optimizer) -> None:
        """Another optimizer, which is not clipped, is about to step the same parameters."""
        self._foreign += 1
        optimizer = self._optimizer()
        if self._foreign == PATIENCE and optimizer is not None:
            self._warn(
                f'in {PATIENCE} iterations the parameters of {type(optimizer).__name__}, which is '
                f'clipped, were stepped by {_place(other, optimizer)}, which is not, and '
                f'{type(optimizer).__name__}.step was not called. Nothing was clipped: attach to '
                f'{_place(other, optimizer)}'
            )

    def warn_if_unused(self, has_trained: bool = False) -> None:
        """Clipping ends without a single step: warn, if there was something to clip.

        Args:
            has_trained: whether iterations are known to have been run. Otherwise gradients, or
                steps of another optimizer, are the sign.
        """
        optimizer = self._optimizer()
        if optimizer is None:
            return
        params = (p for group in optimizer.param_groups for p in group['params'])
        if has_trained or self._foreign or any(p.grad is not None for p in params):
            inner = inner_optimizers(optimizer)
            self._warn(
                f'{type(optimizer).__name__}.step was never called while it was clipped, so that '
                'nothing was clipped: attach to the optimizer whose step the training loop calls'
                + (f' ({", ".join(f".{name}" for name in inner)})' if inner else '')
            )

    def _warn(self, message: str) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(message, stacklevel=3)

    def shares(self, param: Tensor) -> bool:
        """Whether a parameter is one of the optimizer's."""
        optimizer = self._optimizer()
        if optimizer is None:
            return False
        if not self._params:
            self._params = {id(p) for group in optimizer.param_groups for p in group['params']}
        # An id is given again after the parameter is gone: confirm the rare match.
        return id(param) in self._params and any(
            param is p for group in optimizer.param_groups for p in group['params']
        )

    @property
    def optimizer(self) -> Optimizer | None:
        """The optimizer that is clipped; None after it is gone."""
        return self._optimizer()

    @property
    def is_stepping(self) -> bool:
        """Whether the optimizer's own step is running."""
        return self._is_stepping()


def _place(other: Optimizer, optimizer: Optimizer) -> str:
    """How to say which optimizer is meant: an attribute of the one that is clipped, if it is."""
    for name, inner in inner_optimizers(optimizer).items():
        if inner is other:
            return f'its .{name} ({type(other).__name__})'
    return f'another optimizer ({type(other).__name__})'


# -- the one hook for all optimizers -------------------------------------------------------------
_watching: weakref.WeakSet[Bystander] = weakref.WeakSet()
_hook: Any = None


def is_clipped(param: Tensor) -> bool:
    """Whether a parameter belongs to an optimizer that is clipped."""
    return any(bystander.shares(param) for bystander in list(_watching))


def clipped_optimizers() -> list[Optimizer]:
    """All optimizers that are clipped in this process."""
    found = (bystander.optimizer for bystander in list(_watching))
    return [optimizer for optimizer in found if optimizer is not None]


def _watch(bystander: Bystander) -> None:
    global _hook
    _watching.add(bystander)
    if _hook is None:
        _hook = register_optimizer_step_pre_hook(_notice)


def _unwatch(bystander: Bystander) -> None:
    global _hook
    _watching.discard(bystander)
    if not _watching and _hook is not None:
        _hook.remove()
        _hook = None


def _notice(optimizer: Optimizer, *_: Any) -> None:
    # Compiled steps of other optimizers are traced through here; leave nothing in their graphs.
    if is_compiling():
        return
    groups = optimizer.param_groups
    hooks = optimizer._optimizer_step_pre_hooks.values()
    if not groups or not groups[0]['params'] or any(hasattr(hook, 'seam') for hook in hooks):
        return
    param = groups[0]['params'][0]
    for bystander in list(_watching):
        if not bystander.is_stepping and bystander.shares(param):
            bystander.other_stepped(optimizer)
