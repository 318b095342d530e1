"""What MMEngine's ``FSDPStrategy`` leaves out of a checkpoint, or can no longer load."""

from __future__ import annotations

import functools
from typing import Any

from mmengine._strategy import FSDPStrategy
from mmengine.optim import AmpOptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch.distributed.fsdp import FullyShardedDataParallel

from ...compat import allow_sharded_checkpoints

#: What FSDP knows in an optimizer's state; it drops everything else.
_OPTIMIZERS_OWN = ('state', 'param_groups')


def complete_fsdp_strategy() -> None:
    """Have ``FSDPStrategy`` save and load all of an optimizer wrapper's state.

    It sends the wrapper's state through ``FSDP.optim_state_dict``, which keeps what belongs to the
    optimizer: a rule's state and the loss scale would be lost without a word. And it hands the
    arguments of ``FSDP.optim_state_dict_to_load`` over in the order that PyTorch had before 2.1, so
    that no checkpoint can be resumed with a newer one; here they are named. For ``AmpOptimWrapper``
    it chooses the loss scaler that FSDP needs; here for the classes made from it as well.
    """
    if getattr(FSDPStrategy.optim_state_dict, '_is_complete', False):
        return
    stock_save = FSDPStrategy.optim_state_dict

    @functools.wraps(stock_save)
    def optim_state_dict(self: FSDPStrategy) -> dict[str, Any]:
        state = stock_save(self)
        # On every rank, also where only the first one writes: a state may have to be gathered.
        wrapper = self.optim_wrapper
        for name, part in _beside_the_optimizer(wrapper).items():
            state[name] = part.state_dict()
        return state

    @functools.wraps(FSDPStrategy.load_optim_state_dict)
    def load_optim_state_dict(self: FSDPStrategy, state_dict: dict[str, Any]) -> None:
        own = {key: state_dict[key] for key in _OPTIMIZERS_OWN}
        loaded = FullyShardedDataParallel.optim_state_dict_to_load(
            model=self.model, optim=self.optim_wrapper.optimizer, optim_state_dict=own
        )
        rest = {key: value for key, value in state_dict.items() if key not in own}
        self.optim_wrapper.load_state_dict({**loaded, **rest})

    stock_build = FSDPStrategy.build_optim_wrapper

    @functools.wraps(stock_build)
    def build_optim_wrapper(self: FSDPStrategy, optim_wrapper: Any, *args: Any, **kwargs: Any):
        if isinstance(optim_wrapper, dict):
            kind = optim_wrapper.get('type')
            kind = OPTIM_WRAPPERS.get(kind) if isinstance(kind, str) else kind
            if isinstance(kind, type) and issubclass(kind, AmpOptimWrapper):
                optim_wrapper.setdefault('use_fsdp', True)
        return stock_build(self, optim_wrapper, *args, **kwargs)

    allow_sharded_checkpoints()
    FSDPStrategy.build_optim_wrapper = build_optim_wrapper
    optim_state_dict._is_complete = True
    FSDPStrategy.optim_state_dict = optim_state_dict
    FSDPStrategy.load_optim_state_dict = load_optim_state_dict


def _beside_the_optimizer(wrapper: Any) -> dict[str, Any]:
    """The parts of a wrapper that have a state of their own, by their keys in its state."""
    from ..optim_wrapper import STATE_KEY

    parts = {STATE_KEY: 'engine', 'loss_scaler': 'loss_scaler'}
    found = {key: getattr(wrapper, name, None) for key, name in parts.items()}
    return {key: part for key, part in found.items() if part is not None}
