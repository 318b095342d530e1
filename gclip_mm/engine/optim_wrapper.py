"""MMEngine's optimizer wrappers with every clipping rule of this package."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.device import is_cuda_available, is_mlu_available, is_musa_available, is_npu_available
from mmengine.logging import print_log
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import Tensor, nn
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler
from torch.optim import Optimizer

from ..clipping.checks import ClipConfigError
from ..clipping.config.registry import CLIPPERS
from ..clipping.gradients.sharding import is_spread_flat
from ..clipping.step.engine import GradClipEngine
from ..clipping.step.state import STATE_KEY
from ..compat import SCALES_ON_CPU, GradScaler, scaler_options
from .hub import HubClock, drop_records, record_log
from .left_out import BufferSync
from .resumed import keep_kernel_settings


class _ClippingMixin(OptimWrapper):
    """Base of both wrappers: clips by an engine on the optimizer, not by ``torch.nn.utils``."""

    #: Prefix of the log keys. A member of an ``OptimWrapperDict`` gets its key and a dot.
    log_prefix: str = ''
    #: The engine that clips; None without ``clip_grad``.
    engine: GradClipEngine | None

    def _start_engine(self, clip_grad: dict[str, Any] | None) -> None:
        self.engine = None
        self._buffer_sync = BufferSync()
        previous = GradClipEngine.on(self.optimizer)
        if previous is not None and isinstance(previous.owner, _ClippingMixin):
            # A stock wrapper clips in its own step only, so that a new wrapper around the same
            # optimizer replaces the old one. The engine of any other owner stays.
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
        # Stock MMEngine keeps the arguments of the rule here, without its type.
        kwargs = {key: value for key, value in self.engine.config.raw.items() if key != 'type'}
        if not kwargs:
            # Stock MMEngine does not clip if the dict is empty.
            rule = self.engine.config.outer.core
            kwargs = {key: getattr(rule, key) for key in CLIPPERS.keys_of(rule.name)}
        self.clip_grad_kwargs = kwargs
        self.grad_name = 'grad_norm'

    def _iterations_before(self) -> int:
        # backward() has already counted the current iteration.
        return max(self._inner_count - 1, 0)

    def _log_record(self, record: Tensor) -> None:
        assert self.engine is not None
        log = record_log(self.message_hub, self.log_prefix)
        log.append_record(record, self.engine.last_skipped)

    def step(self, **kwargs: Any) -> None:
        """Clip and update the parameters; ``nonfinite`` decides what a non-finite step does.

        Args:
            **kwargs: keyword arguments of :meth:`torch.optim.Optimizer.step`.

        Raises:
            ClipConfigError: a newer wrapper around the same optimizer clips in place of this one;
                or the optimizer was exchanged after this wrapper was built.
        """
        current = None if self.engine is None else GradClipEngine.on(self.optimizer)
        if self.engine is not None and current is None:
            raise ClipConfigError(
                f'the optimizer of this {type(self).__name__} was exchanged for a '
                f'{type(self.optimizer).__name__}, which it does not clip. DeepSpeed, ColossalAI '
                'and others have clipping of their own: set it with '
                "gclip_mm.apply_clip(cfg, 'max_norm=...')"
            )
        if current is not self.engine:
            raise ClipConfigError(
                f'this {type(self).__name__} no longer clips: a newer wrapper has taken over its '
                'optimizer'
            )
        try:
            self._step_optimizer(**kwargs)
        finally:
            if self.engine is not None:
                self.engine.restore()

    def _clip_grad(self) -> None:
        """Clip the gradients now; the step that follows does not clip them again."""
        if self.engine is not None:
            self.engine.clip_now()

    def _step_optimizer(self, **kwargs: Any) -> None:
        """Call the optimizer's ``step``, through the loss scaler if there is one."""
        raise NotImplementedError

    def zero_grad(self, **kwargs: Any) -> None:
        """Call ``Optimizer.zero_grad``; an earlier :meth:`_clip_grad` no longer counts."""
        if self.engine is not None:
            self.engine.forget()
        super().zero_grad(**kwargs)

    def initialize_count_status(self, model: nn.Module, init_counts: int, max_counts: int) -> None:
        """Start the count of iterations; the runner calls this with the model before training.

        Args:
            model: the model; its parameter names are what routes match.
            init_counts: iterations done so far.
            max_counts: iterations of the whole run.

        Raises:
            ClipConfigError: a route of ``clip_grad`` matches no parameter of the model.
        """
        self._bind(model)
        super().initialize_count_status(model, init_counts, max_counts)

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """A context for gradient accumulation and mixed precision; see MMEngine."""
        self._begin_forward(model)
        with super().optim_context(model):
            yield

    def _begin_forward(self, model: nn.Module) -> None:
        if self.engine is None:
            return
        if not self.engine.is_bound:
            self._bind(model)
        self._buffer_sync(self.engine)

    def _bind(self, model: nn.Module) -> None:
        if self.engine is not None:
            self.engine.bind(model)

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state, with the clipping state under the key ``gclip``."""
        state = super().state_dict()
        if self.engine is not None:
            state[STATE_KEY] = self.engine.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load :meth:`state_dict`, or that of a stock wrapper; the dict is not changed.

        ``fused``, ``foreach``, ``capturable`` and ``differentiable`` stay as the optimizer was
        built with: they belong to this run and its device, not to the checkpoint.

        Raises:
            ValueError: the clipping state belongs to another rule or to other parameters.
        """
        state_dict = dict(state_dict)
        clipping = state_dict.pop(STATE_KEY, None)
        super().load_state_dict(keep_kernel_settings(self.optimizer, state_dict))
        if clipping is None:
            return
        if self.engine is not None:
            self.engine.load_state_dict(clipping)
        elif GradClipEngine.on(self.optimizer) is None:
            # Otherwise the log would repeat its last numbers until the end.
            drop_records(self.message_hub, self.log_prefix)
            print_log(
                'The checkpoint holds a clipping state, but clip_grad is not set: dropped.',
                logger='current',
                level=logging.WARNING,
            )


@OPTIM_WRAPPERS.register_module()
class GClipOptimWrapper(_ClippingMixin, OptimWrapper):
    """MMEngine's ``OptimWrapper`` with every clipping rule.

    Gradient accumulation, parameter-wise settings and schedulers are the stock ones. A stock
    ``clip_grad`` gives bit-identical results on a CPU. With ``fused=True`` for SGD, Adam or AdamW
    norm clipping takes place inside the optimizer's kernel.

    Args:
        optimizer: the optimizer.
        accumulative_counts: iterations to accumulate before a step.
        clip_grad: a rule and its keys (:func:`gclip_mm.clipping.config.parse.parse_clip_grad`);
            None: no clipping. It is not changed.

    Raises:
        ClipConfigError: an invalid ``clip_grad``; the message names the key and the valid ones.

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

    def _step_optimizer(self, **kwargs: Any) -> None:
        self.optimizer.step(**kwargs)


@OPTIM_WRAPPERS.register_module()
class GClipAmpOptimWrapper(_ClippingMixin, AmpOptimWrapper):
    """MMEngine's ``AmpOptimWrapper`` with every clipping rule, on a GPU and on a CPU.

    A step that the loss scaler skips does not change a rule's state; it is logged with
    ``nonfinite=1``. On a CPU, which stock MMEngine refuses, ``torch.autocast('cpu')`` and a CPU
    ``GradScaler`` are used.

    Args:
        loss_scale: ``'dynamic'``, a number, or a dict of arguments of ``torch.amp.GradScaler``.
        dtype: ``'float16'`` or ``'bfloat16'``; None: the device's default (bfloat16 on a CPU).
            On a CPU float16 and the loss scale need PyTorch 2.3; before, only bfloat16 without one.
        use_fsdp: use FSDP's ``ShardedGradScaler``.
        **kwargs: arguments of :class:`GClipOptimWrapper`.

    Raises:
        ClipConfigError: an invalid ``clip_grad``; or FSDP with a loss scaler that is not shared by
            all ranks (when a model is bound).
        TypeError: ``loss_scale`` or ``dtype`` is of another type.
        ValueError: ``dtype`` is an unknown name.

    Example:
        >>> optim_wrapper = dict(
        ...     type='GClipAmpOptimWrapper',
        ...     dtype='float16',
        ...     optimizer=dict(type='AdamW', lr=1e-4, fused=True),
        ...     clip_grad=dict(type='NormClip', max_norm=0.1))
    """

    def __init__(
        self,
        loss_scale: str | float | dict[str, Any] = 'dynamic',
        dtype: str | torch.dtype | None = None,
        use_fsdp: bool = False,
        *,
        optimizer: Optimizer,
        accumulative_counts: int = 1,
        clip_grad: dict[str, Any] | None = None,
    ) -> None:
        self._on_cpu = not _has_accelerator()
        if self._on_cpu:
            # The stock constructor refuses a CPU; set the same attributes here.
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
        self,
        loss_scale: str | float | dict[str, Any],
        dtype: str | torch.dtype | None,
        use_fsdp: bool,
    ) -> None:
        self._scale_update_param = None
        scaler_class: Any = ShardedGradScaler if use_fsdp else GradScaler
        options = scaler_options(scaler_class, 'cpu')
        if isinstance(loss_scale, dict):
            options.update(loss_scale)
        elif isinstance(loss_scale, float):
            self._scale_update_param = loss_scale
            options['init_scale'] = loss_scale
        elif loss_scale != 'dynamic':
            raise TypeError(
                f'loss_scale must be of type float, dict, or "dynamic", but got {loss_scale}'
            )
        if isinstance(dtype, str):
            if dtype not in self.valid_dtypes:
                raise ValueError(f'dtype should be any of {self.valid_dtypes}, got {dtype!r}')
            dtype = getattr(torch, dtype)
        if dtype is not None and not isinstance(dtype, torch.dtype):
            raise TypeError(f'dtype should be None, a name or a torch.dtype, got {dtype!r}')
        self.cast_dtype = dtype
        if not SCALES_ON_CPU:
            if dtype == torch.float16:
                raise ValueError(
                    f"dtype 'float16' on a CPU needs PyTorch 2.3 or later, this is "
                    f"{torch.__version__}: use 'bfloat16', which needs no loss scale"
                )
            # bfloat16 has the range of float32, so that nothing is lost.
            options['enabled'] = False
        self.loss_scaler = scaler_class(**options)

    def _step_optimizer(self, **kwargs: Any) -> None:
        try:
            self.loss_scaler.step(self.optimizer, **kwargs)
        except BaseException:
            if self.engine is not None:
                self.engine.restore()
            # The scaler removes these attributes only after a step without an error.
            for name in ('grad_scale', 'found_inf'):
                self.optimizer.__dict__.pop(name, None)
            raise
        self.loss_scaler.update(self._scale_update_param)

    def _bind(self, model: nn.Module) -> None:
        super()._bind(model)
        if self.engine is None or not self.loss_scaler.is_enabled():
            return
        if is_spread_flat(model) and not hasattr(self.loss_scaler, 'process_group'):
            raise ClipConfigError(
                'optim_wrapper: FSDP needs a loss scaler that all ranks share; otherwise one rank '
                'skips a step while the others wait for it: set '
                f'{type(self).__name__}(use_fsdp=True)'
            )

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """The contexts for mixed precision and for gradient accumulation."""
        if not self._on_cpu:
            with super().optim_context(model):
                yield
            return
        self._begin_forward(model)
        # MMEngine's own autocast accepts only bfloat16 on a CPU.
        cast = torch.autocast('cpu', dtype=self.cast_dtype or torch.bfloat16)
        with OptimWrapper.optim_context(self, model), cast:
            yield


def _has_accelerator() -> bool:
    return is_cuda_available() or is_npu_available() or is_mlu_available() or is_musa_available()
