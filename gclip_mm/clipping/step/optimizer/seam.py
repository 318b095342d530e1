"""The seam: an optimizer's ``step``, its closure, and the GradScaler that may withhold the step.

A step pre-hook clips, because that is where every caller of ``step`` passes, after the hooks that
were registered before. A pre-hook cannot keep torch from running ``step``. So the instance gets a
guard around ``step``: the hook raises :class:`_StepLeftOut`, the guard catches it, and the
optimizer's own code has not run. A caller that bypasses the guard (a bound method saved before
attaching) still reaches the hook; the gradients are hidden from such a step.
"""

from __future__ import annotations

import functools
import sys
import types
import warnings
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from ....compat import untraced
from ...checks import ClipConfigError
from .accelerator import watch_accelerator
from .bystander import Bystander, is_clipped
from .inspection import (
    HOOKS_RUNNER,
    clippable,
    has_hooks,
    hook_steps,
    is_hooked,
    runs_hooks,
)
from .rollback import Rollback
from .scaler import watch_scalers


class SteppedEngine(Protocol):
    """What the seam calls."""

    optimizer: Optimizer

    def begin_step(self) -> None:
        """The optimizer's ``step`` begins."""

    def begin_evaluation(self) -> None:
        """The closure of ``step`` is about to run; it may run several times."""

    def run_step(self) -> bool:
        """The gradients are complete; returns whether the step is to be taken."""

    def hide_gradients(self) -> None:
        """The step has to be left out, and ``step`` cannot be kept from running."""

    def step_withheld(self) -> None:
        """A GradScaler found an infinite gradient and did not call ``step``."""

    def end_step(self) -> None:
        """The optimizer has taken the step."""

    def restore(self) -> None:
        """The step is over, or has failed."""


class _StepLeftOut(BaseException):
    """Leaves an optimizer's ``step``. A BaseException, so that no ``except Exception`` catches it.

    Args:
        seam: whose step is left out.
        loss: what the closure returned; the guard returns it in place of ``step``.
    """

    def __init__(self, seam: StepSeam, loss: Any = None) -> None:
        super().__init__()
        self.seam = seam
        self.loss = loss


class StepSeam:
    """Calls an engine in every step of its optimizer, until :meth:`remove`.

    Args:
        engine: what is called.
    """

    def __init__(self, engine: SteppedEngine) -> None:
        self._engine = engine
        self._optimizer = engine.optimizer
        self._engaged = self._was_called = self._is_removed = False
        self._evaluations = 0
        self._rollback = Rollback(engine.optimizer)
        self._warned = self._warned_of_change = False
        # The first gradients, and their versions, after they were clipped.
        self._clipped: list[tuple[Tensor, Tensor, int]] = []
        hook_steps(self._optimizer)
        # Whether its step may change gradients and hand them to the step of a parent class.
        steps = [vars(cls).get('step') for cls in type(self._optimizer).__mro__]
        self._has_parent_step = sum(map(is_hooked, steps)) > 1
        # torch.compile traces the hooks, and the traced step would not see attributes that they set
        # on the optimizer.
        before, after = (_untraced(f) for f in (self._before_step, self._after_step))
        before.seam = self
        self._hooks = [
            engine.optimizer.register_step_pre_hook(before),
            engine.optimizer.register_step_post_hook(after),
        ]
        self._own_step = vars(self._optimizer).get('step')
        # A step on the instance may never reach the hooks: clip before it is called.
        self._clips_first = not runs_hooks(self._optimizer.step, self._optimizer)
        self._guard = self._make_guard()
        try:
            self._optimizer.step = self._guard  # type: ignore[method-assign]
            watch_scalers(self.on)
            watch_accelerator(is_clipped)
        except BaseException:
            self.remove()
            raise
        self.bystander = Bystander(self._optimizer, self._is_stepping)

    @staticmethod
    def on(optimizer: Any) -> StepSeam | None:
        """The seam of an optimizer, or of the one that a wrapper stands for, or None."""
        hooks = getattr(optimizer, '_optimizer_step_pre_hooks', {}).values()
        seam = next((hook.seam for hook in hooks if hasattr(hook, 'seam')), None)
        if seam is not None or not isinstance(optimizer, Optimizer) or has_hooks(optimizer):
            return seam
        try:
            return StepSeam.on(clippable(optimizer))
        except ClipConfigError:
            return None

    @property
    def engine(self) -> Any:
        """The engine that is called."""
        return self._engine

    def remove(self) -> None:
        """Remove the hooks and the guard."""
        for hook in self._hooks:
            hook.remove()
        self._is_removed = True
        if hasattr(self, 'bystander'):
            self.bystander.stop()
        if vars(self._optimizer).get('step') is not self._guard:
            # A scheduler has wrapped the guard, which passes every call on from now on.
            return
        if self._own_step is None:
            del self._optimizer.step
        else:
            self._optimizer.step = self._own_step  # type: ignore[method-assign]

    def under_scaler(self, step: Callable[[], Any]) -> Any:
        """Run what a GradScaler does for a step, and tell the engine if it withheld the step."""
        self._was_called = False
        result = step()
        if not self._was_called:
            self._engine.step_withheld()
        return result

    # -- the guard -------------------------------------------------------------------------------
    def _make_guard(self) -> Any:
        # The class's method, or what a scheduler has put on the instance. Schedulers that come
        # later need a method with ``__func__``.
        inner = self._optimizer.step
        function = getattr(inner, '__func__', None)

        @functools.wraps(inner)
        def step(optimizer: Optimizer, *args: Any, **kwargs: Any) -> Any:
            bound = inner if function is None else functools.partial(function, optimizer)
            if optimizer is not self._optimizer or self._is_removed or self._engaged:
                return bound(*args, **kwargs)
            return self._guarded_step(bound, args, kwargs)

        return types.MethodType(_untraced(step, recursive=False), self._optimizer)

    def _guarded_step(
        self, step: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        self._engaged, self._was_called, self._evaluations = True, False, 0
        try:
            if self._clips_first:
                given = self._before_step(self._optimizer, (self._optimizer, *args), kwargs)
                if given is not None:
                    args, kwargs = given[0][1:], given[1]
            result = step(*args, **kwargs)
            if self._evaluations > 1 and self._rollback.is_poisoned:
                # A later evaluation was not finite, and the optimizer did not recover from it.
                self._rollback.undo()
            else:
                self._engine.end_step()
        except _StepLeftOut as left:
            if left.seam is not self:
                raise
            self._rollback.undo()
            return left.loss
        finally:
            self._engaged = False
            self._rollback.forget(self._evaluations)
            self._clipped.clear()
            self._engine.restore()
        if not self._was_called:
            raise RuntimeError(
                f'{type(self._optimizer).__name__}.step does not run the step hooks of '
                'torch.optim.Optimizer, so that its gradients were not clipped: attach to the '
                'optimizer that it wraps'
            )
        return result

    # -- the hooks -------------------------------------------------------------------------------
    def _before_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, Any] | None:
        if self._was_called if self._engaged else is_nested(optimizer):
            # The step of a parent class, within the step that was clipped.
            self._check_unchanged()
            return None
        self._was_called = True
        self._clipped.clear()
        self._engine.begin_step()
        # torch passes the arguments of step as given, the optimizer itself first.
        closure = kwargs.get('closure', args[1] if len(args) > 1 else None)
        if not callable(closure):
            if not self._restoring(self._run):
                self._leave_out(None)
            return None

        if self._engaged:
            self._rollback.begin()

        # The closure computes the gradients within the step: clip when it returns.
        def evaluate() -> Any:
            self._evaluations += 1
            if self._evaluations == 1:
                self._rollback.look()
            self._engine.begin_evaluation()
            with torch.enable_grad():
                loss = closure()
            if not self._run():
                if self._evaluations == 1:
                    self._leave_out(loss)
                # A trial point. Line searches recover from it as they do without clipping.
                self._rollback.saw_nonfinite = True
            return loss

        clipped = _untraced(lambda: self._restoring(evaluate))
        if 'closure' in kwargs:
            return args, {**kwargs, 'closure': clipped}
        return (args[0], clipped, *args[2:]), kwargs

    def _after_step(self, optimizer: Optimizer, *_: Any) -> None:
        if not self._engaged and not is_nested(optimizer):
            self._clipped.clear()
            self._engine.end_step()
            self._engine.restore()

    def _run(self) -> bool:
        """Clip, and remember a few gradients to notice whether the step changes them."""
        is_taken = self._engine.run_step()
        self._clipped.clear()
        if not self._has_parent_step:
            return is_taken
        for group in self._optimizer.param_groups:
            for param in group['params'][:_LOOKED_AT]:
                if param.grad is not None:
                    self._clipped.append((param, param.grad, param.grad._version))
        return is_taken

    def _check_unchanged(self) -> None:
        if self._warned_of_change or all(
            param.grad is grad and grad._version == version
            for param, grad, version in self._clipped
        ):
            return
        self._warned_of_change = True
        how = (
            'call optimizer.synchronize() first, and step within optimizer.skip_synchronize()'
            if hasattr(self._optimizer, 'skip_synchronize')
            else 'do this before step, or in a step pre-hook that is registered before attaching'
        )
        warnings.warn(
            f'{type(self._optimizer).__name__} changes its gradients within step, after they were '
            'clipped, and calls the step of its parent class with them: the bound of clip_grad '
            f'does not hold. If it reduces, averages or scales them, {how}',
            stacklevel=2,
        )

    def _is_stepping(self) -> bool:
        return self._engaged

    def _leave_out(self, loss: Any) -> None:
        """Keep the optimizer's step from running."""
        if self._engaged:
            raise _StepLeftOut(self, loss)
        if not self._warned:
            self._warned = True
            warnings.warn(
                f'the step of {type(self._optimizer).__name__} is called by a reference that was '
                'taken before clipping was attached. A step that has to be left out is called '
                'without gradients, which leaves traces in some optimizers. Attach first',
                stacklevel=2,
            )
        self._engine.hide_gradients()

    def _restoring(self, act: Callable[[], Any]) -> Any:
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
    if sum(map(is_hooked, steps)) < 2:
        return False
    calls = 0
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code is HOOKS_RUNNER and frame.f_locals['args'][0] is optimizer:
            calls += 1
        frame = frame.f_back
    return calls > 1


#: How many gradients of each group are looked at.
_LOOKED_AT = 2

_REASON = (
    'gclip_mm clips in a hook of the optimizer, which cannot be traced: compile the model, or the '
    'step without fullgraph=True'
)


def _untraced(function: Callable[..., Any], recursive: bool = True) -> Any:
    """The function, called by compiled code without being traced."""
    return untraced(function, recursive, _REASON)
