"""Clipping for a pipeline whose optimizer wrapper must stay as it is."""

from __future__ import annotations

import copy
import functools
from typing import Any, cast

from mmengine.hooks import Hook
from mmengine.hooks.hook import DATA_BATCH
from mmengine.logging import MessageHub
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor
from torch.optim import Optimizer

from ...clipping.checks import ClipConfigError, suggest
from ...clipping.config.parse import COMMON_KEYS, parse_clip_grad
from ...clipping.config.registry import CLIPPERS
from ...clipping.step.engine import GradClipEngine
from ...clipping.step.state import STATE_KEY
from ..hub import HubClock, record_log
from ..left_out import BufferSync
from ..resumed import keep_kernel_settings
from ..strategies import FOREIGN_WRAPPERS, refuse
from ..telemetry.observing import wrapper_members
from .keys import unknown_key


@HOOKS.register_module()
class GClipHook(Hook):
    """Clips the optimizer that the runner trains with; the wrapper's config stays as it is.

    The state of the rules is saved under the same key as by :class:`GClipOptimWrapper`, so that
    each of the two resumes a checkpoint of the other. The members of an ``OptimWrapperDict`` are
    clipped separately, and each logs under its own name.

    Args:
        clip_grad: a rule and its keys (:func:`gclip_mm.clipping.config.parse.parse_clip_grad`).

    Raises:
        ClipConfigError: an unknown key or an invalid ``clip_grad`` (when the hook is built), or an
            optimizer wrapper that clips already (before the run starts).

    Example:
        >>> custom_imports = dict(imports=['gclip_mm'], allow_failed_imports=False)
        >>> custom_hooks = [
        ...     dict(type='GClipHook', clip_grad=dict(type='AGC', clip_factor=0.01))]
    """

    priority = 'VERY_HIGH'

    def __init__(self, clip_grad: dict[str, Any] | None = None, **misplaced: Any) -> None:
        if misplaced:
            raise _misplaced_keys(misplaced)
        # A missing rule gets the same error as a malformed one.
        rule = cast(dict[str, Any], clip_grad)
        parse_clip_grad(rule)
        self.clip_grad = copy.deepcopy(rule)
        self.engines: dict[str, GradClipEngine] = {}
        self._buffer_syncs: dict[str, BufferSync] = {}
        # Optimizer state of a checkpoint that was loaded before the engines were built.
        self._waiting: dict[str, Any] | None = None
        self._has_trained = False

    def before_run(self, runner: Runner) -> None:
        """Attach an engine to each optimizer.

        A Runner loads the checkpoint after this call, a FlexibleRunner before it.

        Raises:
            ClipConfigError: an optimizer is clipped already, or its wrapper cannot be clipped.
        """
        # A run that ended with an error leaves its engines attached.
        self.after_run(runner)
        if not isinstance(runner.optim_wrapper, OptimWrapper):
            # A runner that only tests or validates builds no optimizer.
            return
        for name, wrapper in wrapper_members(runner.optim_wrapper).items():
            if getattr(wrapper, 'clip_grad_kwargs', None) or GradClipEngine.on(wrapper.optimizer):
                raise ClipConfigError(
                    f'GClipHook: the {type(wrapper).__name__}{f" {name!r}" if name else ""} clips '
                    'already: set either its clip_grad or the hook, not both'
                )
            if type(wrapper).__name__ in FOREIGN_WRAPPERS:
                refuse(type(wrapper).__name__, self.clip_grad)
            self.engines[name] = GradClipEngine(
                wrapper.optimizer,
                self.clip_grad,
                model=runner.model,
                clock=HubClock(runner.message_hub),
                on_record=functools.partial(self._log_record, runner.message_hub, name),
                owner=self,
            )
            self._buffer_syncs[name] = BufferSync()
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            self._load(waiting)

    def _log_record(self, hub: MessageHub, name: str, record: Tensor) -> None:
        log = record_log(hub, f'{name}.' if name else '')
        log.append_record(record, self.engines[name].last_skipped)

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: DATA_BATCH = None
    ) -> None:
        """Remember the buffers of the model, to which a step that is left out goes back."""
        for name, engine in self.engines.items():
            self._buffer_syncs[name](engine)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Add the state of the rules to the optimizer's state."""
        if 'optimizer' not in checkpoint:
            return
        for name, engine in self.engines.items():
            optimizer = checkpoint['optimizer'][name] if name else checkpoint['optimizer']
            optimizer[STATE_KEY] = engine.state_dict()

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Restore the state of the rules on a resume.

        The optimizer keeps its own ``fused``, ``foreach``, ``capturable`` and ``differentiable``;
        it is loaded after this call.
        """
        if not runner._resume or 'optimizer' not in checkpoint:
            return
        self._keep_kernel_settings(runner, checkpoint)
        if self.engines:
            self._load(checkpoint['optimizer'])
        else:
            self._waiting = checkpoint['optimizer']

    def _keep_kernel_settings(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        if not isinstance(runner.optim_wrapper, OptimWrapper | OptimWrapperDict):
            return
        state = checkpoint['optimizer']
        for name, wrapper in wrapper_members(runner.optim_wrapper).items():
            if not isinstance(wrapper.optimizer, Optimizer):
                continue
            if not name:
                checkpoint['optimizer'] = keep_kernel_settings(wrapper.optimizer, state)
            elif name in state:
                state[name] = keep_kernel_settings(wrapper.optimizer, state[name])

    def _load(self, optimizer: dict[str, Any]) -> None:
        for name, engine in self.engines.items():
            state = (optimizer.get(name, {}) if name else optimizer).get(STATE_KEY)
            if state is not None:
                engine.load_state_dict(state)

    def after_train_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        """Remember that there was something to clip."""
        self._has_trained = True

    def after_train(self, runner: Runner) -> None:
        """Warn if the training loop never called the ``step`` of an optimizer."""
        if self._has_trained:
            for engine in self.engines.values():
                engine.warn_if_unused(has_trained=True)
        self._has_trained = False

    def after_run(self, runner: Runner) -> None:
        """Detach the engines."""
        for engine in self.engines.values():
            engine.remove()
        self.engines.clear()


def _misplaced_keys(keys: dict[str, Any]) -> ClipConfigError:
    """The error for keys of the hook that are misspelt, or belong into ``clip_grad``."""
    key = next(iter(keys))
    is_of_a_rule = key in COMMON_KEYS or any(key in CLIPPERS.keys_of(name) for name in CLIPPERS)
    if not is_of_a_rule and suggest(key, ['clip_grad']):
        return unknown_key('GClipHook', key, ['clip_grad'])
    rule = ', '.join(f'{key}={value!r}' for key, value in keys.items())
    return ClipConfigError(
        f"GClipHook takes 'clip_grad' and no {key!r}: write "
        f"dict(type='GClipHook', clip_grad=dict({rule}))"
    )
