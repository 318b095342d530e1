"""The second door: clipping for a pipeline whose optimizer wrapper must stay as it is."""

from __future__ import annotations

import copy
from typing import Any

from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ...clipping.checks import ClipConfigError
from ...clipping.config.parse import parse_clip_grad
from ...clipping.step.engine import GradClipEngine
from ..hub.clock import HubClock
from ..hub.record_log import record_log
from ..optim_wrapper import STATE_KEY
from ..strategies import FOREIGN_WRAPPERS, refuse


@HOOKS.register_module()
class GClipHook(Hook):
    """Clips whatever optimizer the runner trains with, without touching its wrapper's config.

    The state of the rules is saved where :class:`GClipOptimWrapper` saves it, so that either door
    resumes what the other has begun. With an ``OptimWrapperDict`` every member is clipped on its
    own and logs under its own name.

    Args:
        clip_grad: a rule and its keys (:func:`gclip_mm.clipping.config.parse.parse_clip_grad`).

    Raises:
        ClipConfigError: a ``clip_grad`` that cannot be obeyed (when the hook is built), or an
            optimizer wrapper that clips already (before the run starts).

    Example:
        >>> custom_imports = dict(imports=['gclip_mm'], allow_failed_imports=False)
        >>> custom_hooks = [
        ...     dict(type='GClipHook', clip_grad=dict(type='AGC', clip_factor=0.01))]
    """

    priority = 'VERY_HIGH'

    def __init__(self, clip_grad: dict[str, Any] | None = None, **misplaced: Any) -> None:
        if misplaced:
            rule = ', '.join(f'{key}={value!r}' for key, value in misplaced.items())
            raise ClipConfigError(
                f"GClipHook takes 'clip_grad' and no {next(iter(misplaced))!r}: write "
                f"dict(type='GClipHook', clip_grad=dict({rule}))"
            )
        parse_clip_grad(clip_grad)
        self.clip_grad = copy.deepcopy(clip_grad)
        self.engines: dict[str, GradClipEngine] = {}
        # What a checkpoint held for engines that were not there yet.
        self._waiting: dict | None = None

    def before_run(self, runner: Runner) -> None:
        """Attach; the wrapper is there. A checkpoint is loaded later, by FlexibleRunner before."""
        # A run that broke off has left its engines.
        self.after_run(runner)
        if not isinstance(runner.optim_wrapper, OptimWrapper):
            # A runner that only tests or validates builds no optimizer.
            return
        for name, wrapper in _members(runner.optim_wrapper).items():
            if getattr(wrapper, 'clip_grad_kwargs', None) or GradClipEngine.on(wrapper.optimizer):
                raise ClipConfigError(
                    f'GClipHook: the {type(wrapper).__name__}{f" {name!r}" if name else ""} clips '
                    'already: set either its clip_grad or the hook, not both'
                )
            if type(wrapper).__name__ in FOREIGN_WRAPPERS:
                refuse(type(wrapper).__name__, self.clip_grad)
            log = record_log(runner.message_hub, f'{name}.' if name else '')
            self.engines[name] = GradClipEngine(
                wrapper.optimizer,
                self.clip_grad,
                model=runner.model,
                clock=HubClock(runner.message_hub),
                on_record=log.append,
            )
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            self._load(waiting)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Add the state of the rules to the optimizer's."""
        if 'optimizer' not in checkpoint:
            return
        for name, engine in self.engines.items():
            optimizer = checkpoint['optimizer'][name] if name else checkpoint['optimizer']
            optimizer[STATE_KEY] = engine.state_dict()

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Restore the state of the rules on a resume."""
        if not runner._resume or 'optimizer' not in checkpoint:
            return
        if self.engines:
            self._load(checkpoint['optimizer'])
        else:
            self._waiting = checkpoint['optimizer']

    def _load(self, optimizer: dict) -> None:
        for name, engine in self.engines.items():
            state = (optimizer.get(name, {}) if name else optimizer).get(STATE_KEY)
            if state is not None:
                engine.load_state_dict(state)

    def after_run(self, runner: Runner) -> None:
        """Detach."""
        for engine in self.engines.values():
            engine.remove()
        self.engines.clear()


def _members(wrapper: OptimWrapper) -> dict[str, OptimWrapper]:
    return dict(wrapper.items()) if isinstance(wrapper, OptimWrapperDict) else {'': wrapper}
