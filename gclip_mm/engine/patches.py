"""All import-time patches of other packages; :func:`apply_patches` applies them.

Every patch may be applied twice without a further effect. This module imports without MMDetection.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from mmengine._strategy import FSDPStrategy
from mmengine.config import ConfigDict
from mmengine.hooks import EMAHook, Hook, RuntimeInfoHook
from mmengine.logging import HistoryBuffer
from mmengine.model import is_model_wrapper
from mmengine.optim import AmpOptimWrapper, OptimWrapper, OptimWrapperDict
from mmengine.registry import OPTIM_WRAPPERS
from mmengine.runner import LogProcessor, Runner
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from ..clipping.step.engine import GradClipEngine
from ..clipping.step.state import STATE_KEY
from ..compat import LOADS_WEIGHTS_ONLY, is_usable, numpy_multiarray
from .hub import line_of_log, note_losses
from .left_out import HeldAverage
from .telemetry.observing import wrapper_members

#: Marks a function that replaces one of another package.
_MARK = '_is_patched_by_gclip'


def apply_patches() -> None:
    """Apply every patch; :mod:`gclip_mm.engine` calls this when it is imported."""
    allow_mmengine_checkpoints()
    allow_sharded_checkpoints()
    complete_fsdp_strategy()
    name_wrapper_members()
    hold_averages()
    log_steps_left_out()
    warn_of_unused_wrappers()
    if is_usable('mmdet.models'):
        let_ssd_predict()
        hold_mean_teacher()


# -- torch.load ----------------------------------------------------------------------------------
# What MMEngine and MMDetection leave in a checkpoint beside tensors: losses, counts, scores,
# palettes and class names.
_NUMPY_DTYPES = ('?', 'b', 'B', 'h', 'H', 'i', 'I', 'l', 'L', 'q', 'Q', 'e', 'f', 'd', 'U', 'S')

# Classes within classes that a checkpoint may look up.
_NESTED: dict[tuple[type, str], type] = {}


def _unpickle_attribute(owner: Any, name: str) -> Any:
    """Stand-in for ``getattr`` while a checkpoint is read.

    A ``HistoryBuffer`` pickles its statistics as ``getattr(HistoryBuffer, 'mean')``. The real
    ``getattr`` would let a crafted file reach any object of the process.
    """
    if isinstance(owner, type) and (owner, name) in _NESTED:
        return _NESTED[owner, name]
    if owner is HistoryBuffer and not name.startswith('_'):
        return getattr(HistoryBuffer, name)
    raise ValueError(
        f'the checkpoint asks for attribute {name!r} of {owner!r}; '
        'only the statistics methods of a HistoryBuffer may be looked up'
    )


def allow_mmengine_checkpoints() -> None:
    """Let ``torch.load`` read the checkpoints that MMEngine writes, and no other classes.

    Since PyTorch 2.6 ``torch.load`` accepts only classes on its allow-list. MMEngine 0.10.7 neither
    adds its own nor asks for the old behaviour, so that resuming fails on the loss history. This
    adds exactly the classes that such a checkpoint holds: the loss history, plain NumPy arrays and
    scalars, and config dicts. An empty array, as MMPose writes one for a skeleton without links,
    pickles its content as a call of ``bytes``. Files written under NumPy 1 and under NumPy 2 are
    read by either. On older PyTorch this does nothing.
    """
    if not LOADS_WEIGHTS_ONLY:
        return
    multiarray = numpy_multiarray()
    allowed: list[Any] = [
        HistoryBuffer,
        ConfigDict,
        np.ndarray,
        np.dtype,
        bytes,
        (_unpickle_attribute, 'builtins.getattr'),
    ]
    allowed += [type(np.dtype(kind)) for kind in _NUMPY_DTYPES]
    for module in ('numpy.core.multiarray', 'numpy._core.multiarray'):
        for name in ('_reconstruct', 'scalar'):
            allowed.append((getattr(multiarray, name), f'{module}.{name}'))
    torch.serialization.add_safe_globals(allowed)


def allow_sharded_checkpoints() -> None:
    """Let ``torch.load`` read the shards that MMEngine's ``FSDPStrategy`` writes by default.

    See :func:`allow_mmengine_checkpoints`. The classes hold tensors, shapes and ranks.
    """
    if not LOADS_WEIGHTS_ONLY:
        return
    from torch.distributed._shard.metadata import ShardMetadata
    from torch.distributed._shard.sharded_tensor import Shard, ShardedTensor, ShardedTensorMetadata
    from torch.distributed._shard.sharded_tensor.metadata import (
        MEM_FORMAT_ENCODING,
        TensorProperties,
    )
    from torch.distributed._shard.sharding_spec import ChunkShardingSpec, EnumerableShardingSpec
    from torch.distributed.remote_device import _remote_device

    group = ShardedTensor.ProcessGroupState
    _NESTED[ShardedTensor, group.__name__] = group
    torch.serialization.add_safe_globals(
        [
            ShardedTensor,
            group,
            ShardedTensorMetadata,
            ShardMetadata,
            Shard,
            TensorProperties,
            MEM_FORMAT_ENCODING,
            ChunkShardingSpec,
            EnumerableShardingSpec,
            _remote_device,
        ]
    )


# -- MMEngine's FSDPStrategy ---------------------------------------------------------------------
#: The entries of an optimizer's state that FSDP keeps; it drops all others.
_OPTIMIZER_KEYS = ('state', 'param_groups')


def complete_fsdp_strategy() -> None:
    """Make ``FSDPStrategy`` save and load all of an optimizer wrapper's state.

    Three methods are replaced:

    * ``optim_state_dict`` sends the wrapper's state through ``FSDP.optim_state_dict``, which keeps
      only the optimizer's entries. The rule's state and the loss scale would be lost without a
      message; the replacement adds them.
    * ``load_optim_state_dict`` passes the arguments of ``FSDP.optim_state_dict_to_load`` in the
      order that PyTorch had before 2.1, so that no checkpoint can be resumed with a newer PyTorch;
      the replacement passes them by name.
    * ``build_optim_wrapper`` selects the loss scaler that FSDP needs for ``AmpOptimWrapper`` only;
      the replacement does so for its subclasses as well.
    """
    if hasattr(FSDPStrategy.optim_state_dict, _MARK):
        return
    stock_save = FSDPStrategy.optim_state_dict
    stock_build = FSDPStrategy.build_optim_wrapper

    @functools.wraps(stock_save)
    def optim_state_dict(self: FSDPStrategy) -> dict[str, Any]:
        state = stock_save(self)
        # On every rank, also where only the first one writes: a state may have to be gathered.
        for name, part in _stateful_parts(self.optim_wrapper).items():
            state[name] = part.state_dict()
        return state

    @functools.wraps(FSDPStrategy.load_optim_state_dict)
    def load_optim_state_dict(self: FSDPStrategy, state_dict: dict[str, Any]) -> None:
        own = {key: state_dict[key] for key in _OPTIMIZER_KEYS}
        loaded = FullyShardedDataParallel.optim_state_dict_to_load(
            model=self.model, optim=self.optim_wrapper.optimizer, optim_state_dict=own
        )
        rest = {key: value for key, value in state_dict.items() if key not in own}
        self.optim_wrapper.load_state_dict({**loaded, **rest})

    @functools.wraps(stock_build)
    def build_optim_wrapper(
        self: FSDPStrategy, optim_wrapper: Any, *args: Any, **kwargs: Any
    ) -> Any:
        if isinstance(optim_wrapper, dict):
            kind = optim_wrapper.get('type')
            kind = OPTIM_WRAPPERS.get(kind) if isinstance(kind, str) else kind
            if isinstance(kind, type) and issubclass(kind, AmpOptimWrapper):
                optim_wrapper.setdefault('use_fsdp', True)
        return stock_build(self, optim_wrapper, *args, **kwargs)

    setattr(optim_state_dict, _MARK, True)
    FSDPStrategy.build_optim_wrapper = build_optim_wrapper
    FSDPStrategy.optim_state_dict = optim_state_dict
    FSDPStrategy.load_optim_state_dict = load_optim_state_dict


def _stateful_parts(wrapper: Any) -> dict[str, Any]:
    """The parts of a wrapper that have a state, without the optimizer, by their keys in it."""
    parts = {STATE_KEY: 'engine', 'loss_scaler': 'loss_scaler'}
    found = {key: getattr(wrapper, name, None) for key, name in parts.items()}
    return {key: part for key, part in found.items() if part is not None}


# -- MMEngine's OptimWrapperDict -----------------------------------------------------------------
def name_wrapper_members() -> None:
    """Make ``OptimWrapperDict`` tell its members their names and the model.

    MMEngine offers a member no other way to learn them. Without names two members would write to
    one log key; with them the keys have the form of MMEngine's own ``get_lr``:
    ``generator.grad_norm``. Without the model there would be no routes, and AGC would treat a
    transposed convolution as an ordinary one.
    """
    build = OptimWrapperDict.__init__
    if hasattr(build, _MARK):
        return
    initialize = OptimWrapperDict.initialize_count_status

    @functools.wraps(build)
    def build_and_name(self: OptimWrapperDict, **members: Any) -> None:
        build(self, **members)
        for name, member in members.items():
            if hasattr(member, 'log_prefix'):
                member.log_prefix = f'{name}.'

    @functools.wraps(initialize)
    def initialize_and_bind(
        self: OptimWrapperDict, model: nn.Module, *args: Any, **kwargs: Any
    ) -> None:
        for member in self.values():
            if getattr(member, 'engine', None) is not None:
                member.engine.bind(model)
        initialize(self, model, *args, **kwargs)

    setattr(build_and_name, _MARK, True)
    OptimWrapperDict.__init__ = build_and_name
    OptimWrapperDict.initialize_count_status = initialize_and_bind


# -- steps that are left out ---------------------------------------------------------------------
_averages: weakref.WeakKeyDictionary[Hook, HeldAverage] = weakref.WeakKeyDictionary()


def hold_averages() -> None:
    """Make ``EMAHook`` pass over an iteration whose step was left out.

    The stock hook averages after every iteration. After a step that was left out it would count the
    same weights twice, and advance its count of steps. With gradient accumulation, the averages
    since the last step that was taken are undone; for this the averaged model is copied once in
    each accumulated step. A run that this package does not clip is not changed.

    Where only the device knows whether the step was taken, the host waits for it once in each step.
    ``EMAHook`` itself reads its count from the device in every iteration.
    """
    _hold(EMAHook, lambda hook, runner: hook.ema_model)


def hold_mean_teacher() -> None:
    """Make MMDetection's ``MeanTeacherHook`` do as :func:`hold_averages` says."""
    from mmdet.engine.hooks import MeanTeacherHook

    def teacher(hook: Any, runner: Runner) -> nn.Module:
        model = runner.model
        return (model.module if is_model_wrapper(model) else model).teacher

    _hold(MeanTeacherHook, teacher)


def _hold(kind: Any, average: Callable[[Any, Runner], nn.Module]) -> None:
    stock = kind.after_train_iter
    if hasattr(stock, _MARK):
        return

    @functools.wraps(stock)
    def after_train_iter(self: Any, runner: Runner, *args: Any, **kwargs: Any) -> None:
        held = _averages.setdefault(self, HeldAverage())
        if held.counts(runner.optim_wrapper, average(self, runner)):
            stock(self, runner, *args, **kwargs)

    setattr(after_train_iter, _MARK, True)
    kind.after_train_iter = after_train_iter


def log_steps_left_out() -> None:
    """Keep the losses of steps that were left out out of MMEngine's averages, and count the steps.

    ``RuntimeInfoHook.after_train_iter`` marks the losses that it has logged
    (:func:`gclip_mm.engine.hub.note_losses`). ``LogProcessor.get_log_after_iter`` shows, under
    ``nonfinite``, the share of the steps since its last line.
    """
    stock_note, stock_line = RuntimeInfoHook.after_train_iter, LogProcessor.get_log_after_iter
    if hasattr(stock_note, _MARK):
        return

    @functools.wraps(stock_note)
    def after_train_iter(
        self: Any,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict[str, Any] | None = None,
    ) -> None:
        stock_note(self, runner, batch_idx, data_batch, outputs)
        note_losses(runner, outputs)

    @functools.wraps(stock_line)
    def get_log_after_iter(self: Any, runner: Runner, *args: Any, **kwargs: Any) -> Any:
        with line_of_log(runner.message_hub):
            return stock_line(self, runner, *args, **kwargs)

    setattr(after_train_iter, _MARK, True)
    RuntimeInfoHook.after_train_iter = after_train_iter
    LogProcessor.get_log_after_iter = get_log_after_iter


# -- training that never steps -------------------------------------------------------------------
_trained: weakref.WeakSet[Runner] = weakref.WeakSet()


def warn_of_unused_wrappers() -> None:
    """Make ``RuntimeInfoHook`` warn at the end of a training in which a wrapper clipped nothing.

    A wrapper is not told when a training ends. Loops that call other methods of the optimizer than
    ``step`` (SAM) never reach its clipping; see
    :meth:`~gclip_mm.clipping.step.engine.GradClipEngine.warn_if_unused`.
    """
    stock_iter, stock_end = RuntimeInfoHook.after_train_iter, RuntimeInfoHook.after_train
    if hasattr(stock_end, _MARK):
        return

    @functools.wraps(stock_iter)
    def after_train_iter(self: Any, runner: Runner, *args: Any, **kwargs: Any) -> None:
        _trained.add(runner)
        stock_iter(self, runner, *args, **kwargs)

    @functools.wraps(stock_end)
    def after_train(self: Any, runner: Runner) -> None:
        stock_end(self, runner)
        if runner not in _trained:
            return
        _trained.discard(runner)
        wrapper = runner.optim_wrapper
        if isinstance(wrapper, OptimWrapper | OptimWrapperDict):
            for member in wrapper_members(wrapper).values():
                engine = getattr(member, 'engine', None)
                if isinstance(engine, GradClipEngine):
                    engine.warn_if_unused(has_trained=True)

    setattr(after_train, _MARK, True)
    RuntimeInfoHook.after_train_iter = after_train_iter
    RuntimeInfoHook.after_train = after_train


# -- MMDetection's SSDHead -----------------------------------------------------------------------
def let_ssd_predict() -> None:
    """Give MMDetection's ``SSDHead`` the attribute ``loss_cls``, which its prediction reads.

    Since MMDetection 3.2 the prediction of every dense head reads ``self.loss_cls``, which
    ``SSDHead`` never sets, so that stock SSD trains but raises ``AttributeError`` at its first
    validation (open-mmlab/mmdetection issues 11063 and 11780). ``None`` selects the softmax, as
    before 3.2. An attribute that ``SSDHead`` sets itself takes precedence.
    """
    from mmdet.models.dense_heads import SSDHead

    if not hasattr(SSDHead, 'loss_cls'):
        SSDHead.loss_cls = None
