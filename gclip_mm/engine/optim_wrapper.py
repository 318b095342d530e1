"""The first door: MMEngine's optimizer wrappers with every clipping rule of this package."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.device import is_cuda_available, is_mlu_available, is_musa_available, is_npu_available
from mmengine.logging import print_log
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import Tensor, nn
from torch.optim import Optimizer

from ..clipping.checks import ClipConfigError
from ..clipping.config.registry import CLIPPERS
from ..clipping.gradients.sharding import is_spread_flat
from ..clipping.step.engine import GradClipEngine
from ..clipping.step.record import LOG_KEYS
from .hub.clock import HubClock
from .hub.record_log import record_log

#: The key under which the clipping state lies in a wrapper's ``state_dict()``.
STATE_KEY = 'gclip'


class _ClippingMixin:
    """What both wrappers share: an engine on the optimizer in place of ``torch.nn.utils``."""

    #: Prefix of the log keys; :class:`OptimWrapperDict` members are named by their key.
    log_prefix: str = ''

    def _start_engine(self, clip_grad: dict[str, Any] | None) -> None:
        self.engine: GradClipEngine | None = None
        previous = GradClipEngine.on(self.optimizer)
        if previous is not None and isinstance(previous.owner, _ClippingMixin):
            # A stock wrapper clips in its own step only, so that one built anew around the same
            # optimizer takes the place of the old one.
            previous.remove()
        if clip_grad is None:
            return
        self.engine = GradClipEngine(
            self.optimizer,
            clip_grad,
            clock=HubClock(self.message_hub, self._iterations_before),
            on_record=self._log_record,
            owner=self,
        )
        # What stock MMEngine keeps there: the arguments of the rule, without its type.
        kwargs = {key: value for key, value in self.engine.config.raw.items() if key != 'type'}
        if not kwargs:
            # An empty dict there means that nothing is clipped.
            rule = self.engine.config.outer.core
            kwargs = {key: getattr(rule, key) for key in CLIPPERS.keys_of(rule.name)}
        self.clip_grad_kwargs = kwargs
        self.grad_name = 'grad_norm'

    def _iterations_before(self) -> int:
        # Counted up in backward(), before the step.
        return max(self._inner_count - 1, 0)

    def _log_record(self, record: Tensor) -> None:
        record_log(self.message_hub, self.log_prefix).append(record)

    def step(self, **kwargs) -> None:
        """Clip and update the parameters; a non-finite step is dealt with by ``nonfinite``.

        Args:
            kwargs: Keyword arguments passed to :meth:`torch.optim.Optimizer.step`.

        Raises:
            ClipConfigError: another wrapper has been built around the optimizer since, and clips
                in place of this one; or the optimizer is no longer the one that it was built with.
        """
        current = None if self.engine is None else GradClipEngine.on(self.optimizer)
        if self.engine is not None and current is None:
            raise ClipConfigError(
                f'the optimizer of this {type(self).__name__} was exchanged for a '
                f'{type(self.optimizer).__name__}, which it does not clip. DeepSpeed, ColossalAI '
                "and others clip by themselves: gclip_mm.apply_clip(cfg, 'max_norm=...') sets them"
            )
        if current is not self.engine:
            raise ClipConfigError(
                f'this {type(self).__name__} no longer clips: a newer wrapper has taken its '
                'optimizer over'
            )
        try:
            self._step_optimizer(**kwargs)
        finally:
            if self.engine is not None:
                self.engine.restore()

    def _clip_grad(self) -> None:
        """Clip the gradients at once; the step that follows does not clip them again."""
        if self.engine is not None:
            self.engine.clip_now()

    def zero_grad(self, **kwargs) -> None:
        """A wrapper of ``Optimizer.zero_grad``."""
        if self.engine is not None:
            self.engine.forget()
        super().zero_grad(**kwargs)

    def initialize_count_status(self, model: nn.Module, init_counts: int, max_counts: int) -> None:
        """Start the count of iterations; the runner calls it with the model before it trains.

        Raises:
            ClipConfigError: a route of ``clip_grad`` matches no parameter of the model.
        """
        self._bind(model)
        super().initialize_count_status(model, init_counts, max_counts)

    @contextmanager
    def optim_context(self, model: nn.Module):
        """A context for gradient accumulation and mixed precision; see MMEngine."""
        if self.engine is not None and not self.engine.is_bound:
            self._bind(model)
        with super().optim_context(model):
            yield

    def _bind(self, model: nn.Module) -> None:
        if self.engine is not None:
            self.engine.bind(model)

    def state_dict(self) -> dict:
        """The optimizer's state; the clipping state is beside it under the key ``gclip``."""
        state = super().state_dict()
        if self.engine is not None:
            state[STATE_KEY] = self.engine.state_dict()
        return state

    def load_state_dict(self, state_dict: dict) -> None:
        """Load :meth:`state_dict`, or that of a stock wrapper; the dict keeps its clipping state.

        Raises:
            ValueError: the clipping state is of another rule or of other parameters.
        """
        state_dict = dict(state_dict)
        clipping = state_dict.pop(STATE_KEY, None)
        super().load_state_dict(state_dict)
        if clipping is None:
            return
        if self.engine is not None:
            self.engine.load_state_dict(clipping)
        elif GradClipEngine.on(self.optimizer) is None:
            # Or the log would repeat its last numbers to the end.
            for key in LOG_KEYS:
                self.message_hub.log_scalars.pop(f'train/{self.log_prefix}{key}', None)
            print_log(
                'The checkpoint holds a clipping state, but clip_grad is not set: dropped.',
                logger='current',
                level=logging.WARNING,
            )


@OPTIM_WRAPPERS.register_module()
class GClipOptimWrapper(_ClippingMixin, OptimWrapper):
    """MMEngine's ``OptimWrapper`` with every clipping rule.

    Gradient accumulation, parameter-wise settings and schedulers are the stock ones, and a stock
    ``clip_grad`` gives the same bits on a CPU. Give ``fused=True`` to SGD, Adam or AdamW and norm
    clipping takes place inside the optimizer's kernel.

    Args:
        optimizer: the optimizer.
        accumulative_counts: iterations to accumulate before a step.
        clip_grad: a rule and its keys (:func:`gclip_mm.clipping.config.parse.parse_clip_grad`), or None.
            It is not changed.

    Raises:
        ClipConfigError: a ``clip_grad`` that cannot be obeyed; names the key and the valid ones.

    Example:
        >>> custom_imports = dict(imports=['gclip_mm'], allow_failed_imports=False)
        >>> optim_wrapper = dict(
        ...     type='GClipOptimWrapper',
        ...     optimizer=dict(type='SGD', lr=0.02, momentum=0.9, weight_decay=1e-4),
        ...     clip_grad=dict(type='AGC', clip_factor=0.01, exclude=['fc_cls']))
    """

    def __init__(
        self,
        optimizer: Optimizer,
        accumulative_counts: int = 1,
        clip_grad: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(optimizer, accumulative_counts, clip_grad=None)
        self._start_engine(clip_grad)

    def _step_optimizer(self, **kwargs) -> None:
        self.optimizer.step(**kwargs)


@OPTIM_WRAPPERS.register_module()
class GClipAmpOptimWrapper(_ClippingMixin, AmpOptimWrapper):
    """MMEngine's ``AmpOptimWrapper`` with every clipping rule, on a GPU and on a CPU.

    A step that the loss scaler skips leaves no trace in a rule's state; it is logged with
    ``nonfinite=1``. On a CPU, where stock MMEngine refuses, ``torch.autocast('cpu')`` and a CPU
    ``GradScaler`` are used.

    Args:
        loss_scale: ``'dynamic'``, a number, or a dict of arguments of ``torch.amp.GradScaler``.
        dtype: ``'float16'`` or ``'bfloat16'``; None: the device's default (bfloat16 on a CPU).
        use_fsdp: use FSDP's ``ShardedGradScaler``.
        **kwargs: arguments of :class:`GClipOptimWrapper`.

    Raises:
        ClipConfigError: a ``clip_grad`` that cannot be obeyed.
        TypeError: a ``loss_scale`` of another type.

    Example:
        >>> optim_wrapper = dict(
        ...     type='GClipAmpOptimWrapper',
        ...     dtype='float16',
        ...     optimizer=dict(type='AdamW', lr=1e-4, fused=True),
        ...     clip_grad=dict(type='NormClip', max_norm=0.1))
    """

    def __init__(
        self,
        loss_scale: str | float | dict = 'dynamic',
        dtype: str | torch.dtype | None = None,
        use_fsdp: bool = False,
        *,
        optimizer: Optimizer,
        accumulative_counts: int = 1,
        clip_grad: dict[str, Any] | None = None,
    ) -> None:
        self._on_cpu = not _has_accelerator()
        if self._on_cpu:
            # The stock constructor refuses a CPU; this is what it would have set.
            OptimWrapper.__init__(self, optimizer, accumulative_counts, clip_grad=None)
            self._start_cpu_scaler(loss_scale, dtype, use_fsdp)
        else:
            super().__init__(
                loss_scale,
                dtype,
                use_fsdp,
                optimizer=optimizer,
                accumulative_counts=accumulative_counts,
                clip_grad=None,
            )
        self._start_engine(clip_grad)

    def _start_cpu_scaler(
        self, loss_scale: str | float | dict, dtype: str | torch.dtype | None, use_fsdp: bool
    ) -> None:
        self._scale_update_param = None
        if use_fsdp:
            from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler as GradScaler
        else:
            from torch.amp import GradScaler
        options: dict[str, Any] = {'device': 'cpu'}
        if isinstance(loss_scale, dict):
            options.update(loss_scale)
        elif isinstance(loss_scale, float):
            self._scale_update_param = loss_scale
            options['init_scale'] = loss_scale
        elif loss_scale != 'dynamic':
            raise TypeError(
                f'loss_scale must be of type float, dict, or "dynamic", but got {loss_scale}'
            )
        self.loss_scaler = GradScaler(**options)
        if isinstance(dtype, str):
            if dtype not in self.valid_dtypes:
                raise ValueError(f'dtype should be any of {self.valid_dtypes}, got {dtype!r}')
            dtype = getattr(torch, dtype)
        if dtype is not None and not isinstance(dtype, torch.dtype):
            raise TypeError(f'dtype should be None, a name or a torch.dtype, got {dtype!r}')
        self.cast_dtype = dtype

    def _step_optimizer(self, **kwargs) -> None:
        try:
            self.loss_scaler.step(self.optimizer, **kwargs)
        except BaseException:
            if self.engine is not None:
                self.engine.restore()
            # The scaler takes them off only after a step that went well.
            for name in ('grad_scale', 'found_inf'):
                vars(self.optimizer).pop(name, None)
            raise
        self.loss_scaler.update(self._scale_update_param)

    def _bind(self, model: nn.Module) -> None:
        super()._bind(model)
        if self.engine is None or not self.loss_scaler.is_enabled():
            return
        if is_spread_flat(model) and not hasattr(self.loss_scaler, 'process_group'):
            raise ClipConfigError(
                'optim_wrapper: FSDP needs a loss scaler that all ranks share, or one of them '
                f'skips a step that the others wait in: set {type(self).__name__}(use_fsdp=True)'
            )

    @contextmanager
    def optim_context(self, model: nn.Module):
        """The contexts for mixed precision and for gradient accumulation."""
        if not self._on_cpu:
            with super().optim_context(model):
                yield
            return
        if self.engine is not None and not self.engine.is_bound:
            self._bind(model)
        # MMEngine's own autocast accepts bfloat16 only on a CPU.
        cast = torch.autocast('cpu', dtype=self.cast_dtype or torch.bfloat16)
        with OptimWrapper.optim_context(self, model), cast:
            yield


def _has_accelerator() -> bool:
    return is_cuda_available() or is_npu_available() or is_mlu_available() or is_musa_available()
