"""RuntimeInfoHook without a device read at every step."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import RuntimeInfoHook
from mmengine.hooks.hook import DATA_BATCH
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ..hub import DeferredScalars, note_losses
from .keys import reject_unknown_keys


@HOOKS.register_module()
@reject_unknown_keys
class GClipRuntimeInfoHook(RuntimeInfoHook):
    """MMEngine's ``RuntimeInfoHook`` that leaves losses on the device until they are logged.

    The stock hook calls ``item()`` on every loss in every iteration, so that the host waits for the
    end of the step before it prepares the next one. This hook copies the numbers of an iteration to
    one small tensor on their device, and fetches them together when their history is read, which
    MMEngine does once in a log interval and for a checkpoint. Log, histories and checkpoints hold
    identical values, and each hook resumes the checkpoints of the other.

    The hook removes only this read. A model, a hook or a loss scaler may still read from the device
    at every step. The host then waits for a whole interval when the log is written; MMEngine counts
    that wait as ``data_time`` of the next iteration.

    Real numbers in plain tensors of one element are deferred: losses, and a learning rate that is a
    tensor. Any other value is logged at once, as by the stock hook.

    Raises:
        ClipConfigError: an unknown key.

    Example:
        >>> custom_imports = dict(imports=['gclip_mm'], allow_failed_imports=False)
        >>> default_hooks = dict(runtime_info=dict(type='GClipRuntimeInfoHook'))
    """

    def before_train(self, runner: Runner) -> None:
        """Attach to the message hub."""
        super().before_train(runner)
        self._deferred = DeferredScalars(runner.message_hub)

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: DATA_BATCH = None
    ) -> None:
        """Update the iteration and the learning rates."""
        runner.message_hub.update_info('iter', runner.iter)
        rates = runner.optim_wrapper.get_lr()
        self._deferred.update({f'train/{name}': rate[0] for name, rate in rates.items()})

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: DATA_BATCH = None,
        outputs: dict[str, Any] | None = None,
    ) -> None:
        """Update the losses and other numbers that the model returned."""
        self._deferred.update({f'train/{name}': value for name, value in (outputs or {}).items()})
        note_losses(runner, outputs)
