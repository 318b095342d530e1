"""Which iterations ended in a step that was left out, for what reads a run from outside.

A step that is left out (a non-finite gradient, or a loss scaler) must not enter moving averages of
the weights, nor the averages of the log.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from mmengine.optim import OptimWrapper, OptimWrapperDict
from torch import Tensor, nn

from ..clipping.step.engine import GradClipEngine
from .telemetry.observing import wrapper_members


class StepWatch:
    """Tells what the clipped optimizers of a run have done since the last call.

    Gradient clipping may come from a wrapper, from ``GClipHook`` or from ``gclip_mm.attach``.
    """

    def __init__(self) -> None:
        # By engine: the record of its last step, and its count of steps.
        self._seen: weakref.WeakKeyDictionary[GradClipEngine, tuple[Tensor | None, int]] = (
            weakref.WeakKeyDictionary()
        )

    def __call__(self, wrapper: OptimWrapper | OptimWrapperDict) -> bool | Tensor | None:
        """Whether all steps since the last call were left out.

        Args:
            wrapper: the wrapper of the run. An ``OptimWrapperDict`` has left out an iteration if
                every member that stepped has. A member without clipping counts as stepped.

        Returns:
            bool, Tensor or None: None if no clipped optimizer has stepped, as in an iteration that
            only accumulates gradients; a 0-d tensor, not 0 if left out, where only the device
            knows.
        """
        engines = [GradClipEngine.on(optimizer) for optimizer in _optimizers(wrapper)]
        looks = [self._look(engine) for engine in engines if engine is not None]
        flags = [flag for flag in looks if flag is not None]
        if not flags:
            return None
        return False if None in engines else all_left_out(flags)

    def _look(self, engine: GradClipEngine) -> bool | Tensor | None:
        record, steps = engine.last_record, engine.steps
        before, steps_before = self._seen.get(engine, (None, steps - 1))
        if record is before:
            return None
        self._seen[engine] = (record, steps)
        # A model may step several times in one iteration, as GANs and SAM do.
        flags = list(engine.recent_skips)[-max(steps - steps_before, 1) :]
        return all_left_out(flags)


def all_left_out(flags: list[bool | Tensor]) -> bool | Tensor:
    """Whether every flag says so; a 0-d bool tensor where only the device knows."""
    if any(flag is False for flag in flags):
        return False
    on_device = [flag for flag in flags if isinstance(flag, Tensor)]
    if len(on_device) < 2:
        return on_device[0] if on_device else True
    device = on_device[0].device
    return torch.stack([(flag != 0).to(device) for flag in on_device]).all()


def has_engine(wrapper: OptimWrapper | OptimWrapperDict) -> bool:
    """Whether an optimizer of the run is clipped by this package."""
    return any(GradClipEngine.on(optimizer) is not None for optimizer in _optimizers(wrapper))


def _optimizers(wrapper: Any) -> list[Any]:
    return [getattr(member, 'optimizer', None) for member in wrapper_members(wrapper).values()]


class BufferSync:
    """Has an engine go back to the buffers as a step finds them, not as the last step left them.

    Hooks may write to buffers between two steps: averaged teachers, synchronised batch norms.
    """

    def __init__(self) -> None:
        self._last: Any = self

    def __call__(self, engine: GradClipEngine) -> None:
        """An iteration is about to compute; does nothing within an accumulated step."""
        if engine.last_record is not self._last:
            self._last = engine.last_record
            engine.keep_buffers()


class HeldAverage:
    """Decides for a hook that averages weights whether an iteration counts.

    With gradient accumulation the hook averages before anyone knows whether the step will be taken.
    The averaged tensors are then copied before the first of these iterations, and put back if the
    step is left out.
    """

    def __init__(self) -> None:
        self._watch = StepWatch()
        self._saved: list[tuple[Tensor, Tensor]] = []

    def counts(self, wrapper: OptimWrapper | OptimWrapperDict, average: nn.Module) -> bool:
        """Whether the hook is to average in this iteration. Call once in every iteration.

        Where only the device knows whether the step was taken, the host waits for it here.

        Args:
            wrapper: the wrapper of the run.
            average: the averaged model, with its counters as buffers.
        """
        if not has_engine(wrapper):
            return True
        left_out = self._watch(wrapper)
        if left_out is None:
            if not self._saved:
                self._saved = [(t, t.clone()) for t in _tensors(average)]
            return True
        saved, self._saved = self._saved, []
        if isinstance(left_out, Tensor):
            left_out = bool(left_out.item())
        if left_out:
            for tensor, value in saved:
                tensor.copy_(value)
        return not left_out


def _tensors(module: nn.Module) -> Iterable[Tensor]:
    return [tensor for tensor in module.state_dict().values() if isinstance(tensor, Tensor)]
