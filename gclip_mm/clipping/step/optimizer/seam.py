"""The seam: hooks around an optimizer's ``step``, around its closure, and behind a GradScaler."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch.optim import Optimizer

from .scaler import watch_scalers


class SteppedEngine(Protocol):
    """What the seam calls."""

    optimizer: Optimizer

    def begin_step(self) -> None:
        """The optimizer's ``step`` begins."""

    def begin_evaluation(self) -> None:
        """The closure of ``step`` is about to run; it may run several times."""

    def run_step(self) -> None:
        """The gradients are complete."""

    def step_withheld(self) -> None:
        """A GradScaler found an infinite gradient and did not call ``step``."""

    def restore(self) -> None:
        """The step is over, or has failed."""


class StepSeam:
    """Calls an engine in every step of its optimizer, until :meth:`remove`.

    Args:
        engine: what is called.
    """

    def __init__(self, engine: SteppedEngine) -> None:
        self._engine = engine
        self._was_called = False
        # torch.compile traces the hooks, and the traced step would not see attributes that they set
        # on the optimizer.
        before, after = (torch.compiler.disable(f) for f in (self._before_step, self._after_step))
        before.seam = self
        self._hooks = [
            engine.optimizer.register_step_pre_hook(before),
            engine.optimizer.register_step_post_hook(after),
        ]
        watch_scalers(self.on)

    @staticmethod
    def on(optimizer: Optimizer) -> StepSeam | None:
        """The seam of an optimizer, or None."""
        hooks = getattr(optimizer, '_optimizer_step_pre_hooks', {}).values()
        return next((hook.seam for hook in hooks if hasattr(hook, 'seam')), None)

    @property
    def engine(self) -> Any:
        """The engine that is called."""
        return self._engine

    def remove(self) -> None:
        """Remove the hooks."""
        for hook in self._hooks:
            hook.remove()

    def under_scaler(self, step: Callable[[], Any]) -> Any:
        """Run what a GradScaler does for a step, and tell the engine if it withheld the step."""
        self._was_called = False
        result = step()
        if not self._was_called:
            self._engine.step_withheld()
        return result

    def _before_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, Any] | None:
        if is_nested(optimizer):
            return None
        self._was_called = True
        self._engine.begin_step()
        # torch passes the arguments of step as given, the optimizer itself first.
        closure = kwargs.get('closure', args[1] if len(args) > 1 else None)
        if closure is None:
            self._guarded(self._engine.run_step)
            return None

        # The closure computes the gradients within the step: clip when it returns.
        def evaluate() -> Any:
            self._engine.begin_evaluation()
            with torch.enable_grad():
                loss = closure()
            self._engine.run_step()
            return loss

        clipped = torch.compiler.disable(lambda: self._guarded(evaluate))
        if 'closure' in kwargs:
            return args, {**kwargs, 'closure': clipped}
        return (args[0], clipped, *args[2:]), kwargs

    def _after_step(self, optimizer: Optimizer, *_: Any) -> None:
        if not is_nested(optimizer):
            self._engine.restore()

    def _guarded(self, act: Callable[[], Any]) -> Any:
        """Run it; if it fails, restore here, because torch will not call the post hook."""
        try:
            return act()
        except BaseException:
            self._engine.restore()
            raise


def is_nested(optimizer: Optimizer) -> bool:
    """Whether the step whose hooks are running was called by another step of the same optimizer.

    PyTorch runs the hooks around ``step`` of every class that an optimizer has been made of. For ::

        class Mine(torch.optim.SGD):
            def step(self, closure=None):
                return super().step(closure)

    and with a plain SGD elsewhere in the process, the hooks run twice in each step, and only the
    outer call is to clip. To be called by a hook. It inspects the call stack rather than a flag,
    because a step that raises never reports that it is over.
    """
    steps = [vars(cls).get('step') for cls in type(optimizer).__mro__]
    if sum(hasattr(step, 'hooked') for step in steps) < 2:
        return False
    calls = 0
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code is _HOOKS_RUNNER and frame.f_locals['args'][0] is optimizer:
            calls += 1
        frame = frame.f_back  # type: ignore[assignment]
    return calls > 1


# The function that runs the hooks, with the optimizer as its first argument; one for all classes.
_HOOKS_RUNNER = Optimizer.profile_hook_step(lambda self: None).__code__  # type: ignore[arg-type, return-value]
