"""The log's numbers without a device read at every step."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.hooks import RuntimeInfoHook
from mmengine.hooks.hook import DATA_BATCH
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn

from ..hub.deferred_scalars import DeferredScalars


@HOOKS.register_module()
class GClipRuntimeInfoHook(RuntimeInfoHook):
    """MMEngine's ``RuntimeInfoHook`` that leaves losses on the device until they are logged.

    The stock hook calls ``item()`` on every loss in every iteration, so that the host waits for the
    step to end before it may prepare the next. Here the numbers of an iteration are copied to one
    small tensor on their device, and fetched together when somebody looks at their history, as
    MMEngine does once in a log interval and for a checkpoint. Log, histories and checkpoints are
    the same, value for value; a checkpoint of either hook is one for the other.

    It takes away this one read. A model, a hook or a loss scaler that looks at the device at every
    step by itself goes on doing so. Since nothing waits before the log is written, the wait of a
    whole interval is measured there, by MMEngine as ``data_time`` of the iteration that follows.

    Deferred are real numbers in plain tensors of one element: losses, and a learning rate that is a
    tensor. Anything else goes the stock way.

    Example:
        >>> custom_imports = dict(imports=['gclip_mm'], allow_failed_imports=False)
        >>> default_hooks = dict(runtime_info=dict(type='GClipRuntimeInfoHook'))
    """

    def before_train(self, runner: Runner) -> None:
        super().before_train(runner)
        self._deferred = DeferredScalars(runner.message_hub)

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: DATA_BATCH = None
    ) -> None:
        """Update the iteration and the learning rates."""
        runner.message_hub.update_info('iter', runner.iter)
        rates = runner.optim_wrapper.get_lr()
        self._update(runner, {name: rate[0] for name, rate in rates.items()})

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: DATA_BATCH = None,
        outputs: dict | None = None,
    ) -> None:
        """Update what the model returned to be logged."""
        self._update(runner, outputs or {})

    def _update(self, runner: Runner, scalars: dict[str, Any]) -> None:
        groups: dict[tuple[torch.device, torch.dtype], tuple[list[str], list[Tensor]]] = {}
        for name, value in scalars.items():
            key = f'train/{name}'
            if not _can_wait(value):
                runner.message_hub.update_scalar(key, value)
                continue
            # One by one, so that the keys come in the order of the stock hook's.
            self._deferred.adopt(key)
            keys, values = groups.setdefault((value.device, value.dtype), ([], []))
            keys.append(key)
            values.append(value.detach().reshape(()))
        for keys, values in groups.values():
            # A copy: what the model returned may be written to in the next step (CUDA graphs).
            self._deferred.append(tuple(keys), torch.stack(values))


def _can_wait(value: Any) -> bool:
    # A subclass, such as a DTensor, may need communication to tell its value.
    is_plain = type(value) is Tensor or type(value) is nn.Parameter
    return is_plain and value.numel() == 1 and not value.is_complex()
