"""Leaves a step out where Detectron2 would end the run with a FloatingPointError.

Two places of Detectron2 raise it before ``optimizer.step`` is reached: the RPN in the forward pass,
where the predicted boxes are not finite, and the trainer where it writes a non-finite loss. Both
would keep ``nonfinite='skip'`` from acting, and the first would leave the other ranks waiting in
their backward pass.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from detectron2.engine import SimpleTrainer
from torch import Tensor, nn

from ..clipping.step.engine import GradClipEngine

# Below 'detectron2', so that its messages are in the log of the run.
_logger = logging.getLogger('detectron2.gclip_mm')


class Guard:
    """Turns a non-finite loss on one rank into a non-finite gradient on all.

    A forward pass that raises ``FloatingPointError``, or returns a loss that is not finite, returns
    NaN under the keys of the last losses. The NaN depends on every parameter, so that the backward
    pass makes the same reductions as on the other ranks and every rank gets a NaN gradient. The
    engine then leaves the step out everywhere and puts the buffers back. Other errors, such as the
    ``AssertionError`` of Detectron2 about invalid boxes, are raised as before.

    It acts under ``nonfinite='skip'`` with ``max_consecutive_skips``, which ends a run that only
    skips, and in forward passes that train.

    Args:
        model: the model without ``DistributedDataParallel``.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._engine: GradClipEngine | None = None
        self._keys: list[str] | None = None
        self._last_record: Any = self

    def watch(self, engine: GradClipEngine) -> None:
        """Guard the steps of an engine, if its config asks for it."""
        config = engine.config
        if config.nonfinite != 'skip' or config.max_consecutive_skips is None:
            return
        self._engine = engine
        self._model.forward = GuardedForward(self, self._model)  # type: ignore[assignment]
        _guard_metrics()

    def forward(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call the forward method of the model."""
        if self._engine is None or not (self._model.training and torch.is_grad_enabled()):
            return forward(*args, **kwargs)
        if self._engine.last_record is not self._last_record:
            # What hooks did to buffers between two steps (PreciseBN) is not of the step to come.
            self._last_record = self._engine.last_record
            self._engine.keep_buffers()
        try:
            losses = forward(*args, **kwargs)
        except FloatingPointError as error:
            if self._keys is None:
                raise
            _logger.warning('The step is left out: %s', error)
            return self._nan(self._keys)
        keys = list(losses) if isinstance(losses, Mapping) else []
        values = [losses[key] for key in keys] if keys else [losses]
        if not all(isinstance(value, Tensor) for value in values):
            return losses
        if torch.stack([torch.isfinite(value).all() for value in values]).all():
            self._keys = keys
            return losses
        shown = {key: value.tolist() for key, value in zip(keys or ['loss'], values, strict=True)}
        _logger.warning('The step is left out: a loss is not finite, %s', shown)
        return self._nan(keys)

    def _nan(self, keys: list[str]) -> Any:
        """NaN losses under these keys, or one without a key, that depend on every parameter."""
        parts = [
            (p.float() * float('nan')).sum() for p in self._model.parameters() if p.requires_grad
        ]
        tied = torch.stack([part.to(parts[0].device) for part in parts]).sum()
        if not keys:
            return tied
        return {key: tied if key == keys[0] else tied.detach() for key in keys}

    def leaves_out(self) -> bool:
        """Whether the step of this iteration will be, or was, left out; waits for the device."""
        if self._engine is None:
            return False
        grads = [p.grad for p in self._model.parameters() if p.grad is not None]
        return not all(bool(torch.isfinite(grad).all()) for grad in grads)


class GuardedForward:
    """The ``forward`` of a guarded model; a copied or pickled model gets its own, unguarded."""

    def __init__(self, guard: Guard, model: nn.Module) -> None:
        self._guard = guard
        self._model = model
        # What a project has put on the instance, or the method of the class.
        self._forward = model.forward
        functools.update_wrapper(self, self._forward)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._guard.forward(self._forward, *args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return _itself, (self._forward,)


def _itself(thing: Any) -> Any:
    return thing


def _guard_metrics() -> None:
    """Wrap ``SimpleTrainer._write_metrics``; for trainers without a guard it does what it did.

    It raises on the main process only, where the losses of all ranks are gathered. The gradient of
    a loss that is not finite has made the gradients of all ranks so.
    """
    stock = SimpleTrainer._write_metrics
    if hasattr(stock, 'is_guarded'):
        return

    @functools.wraps(stock)
    def write_metrics(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return stock(self, *args, **kwargs)
        except FloatingPointError:
            engine = GradClipEngine.on(self.optimizer)
            guard = None if engine is None else engine.owner
            if not (isinstance(guard, Guard) and guard.leaves_out()):
                raise

    write_metrics.is_guarded = True  # type: ignore[attr-defined]
    SimpleTrainer._write_metrics = write_metrics
