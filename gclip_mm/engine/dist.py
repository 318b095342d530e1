"""Distributed training on a machine without a GPU, which MMEngine cannot start."""

from __future__ import annotations

import atexit
import datetime
import gc
import os
from typing import Any

import torch.distributed as dist
from mmengine.config import Config
from mmengine.device import get_device

from .configs import LaunchError


def set_up_cpu_distributed(cfg: Config) -> bool:
    """Start gloo and adapt ``cfg``, if ``cfg.launcher`` asks for processes on a CPU-only machine.

    MMEngine always calls ``torch.cuda.set_device`` and wraps the model for one GPU per process,
    unless a process group exists and the config names the model wrapper. This function provides
    both; call it before the Runner is built. With a GPU, or with ``launcher='none'``, it does
    nothing.

    Args:
        cfg: a complete MMEngine config. ``launcher`` and ``env_cfg.dist_cfg.timeout`` are read,
            ``model_wrapper_cfg`` is written, or ``strategy`` where a ``FlexibleRunner`` trains.

    Returns:
        bool: whether this is a distributed run on CPU.

    Raises:
        LaunchError: the launchers ``slurm`` and ``mpi`` on a CPU-only machine; a process that was
            not started by ``torchrun``; a strategy that needs a GPU.
    """
    launcher = cfg.get('launcher', 'none')
    if launcher == 'none' or get_device() != 'cpu':
        return False
    if launcher != 'pytorch':
        raise LaunchError(
            f'--launcher {launcher} needs a GPU; without one start the processes with torchrun and '
            '--launcher pytorch, as tools/dist_train.sh and tools/slurm_train.sh do'
        )
    if not dist.is_initialized():
        _start_gloo(cfg.get('env_cfg', {}).get('dist_cfg', {}).get('timeout'))

    if cfg.get('strategy') is not None or cfg.get('runner_type') == 'FlexibleRunner':
        _adapt_strategy(cfg)
        return True
    wrapper = dict(cfg.get('model_wrapper_cfg') or {})
    if not wrapper:
        # The settings that MMEngine itself would use for its default wrapper.
        wrapper['broadcast_buffers'] = False
        wrapper['find_unused_parameters'] = cfg.get('find_unused_parameters', False)
    wrapper.setdefault('type', 'MMDistributedDataParallel')
    wrapper['device_ids'] = None
    cfg.model_wrapper_cfg = wrapper
    return True


def close_distributed() -> None:
    """End the process group, if there is one; call it when the Runner is no longer referenced.

    DDP's reducer must not hold the last reference to the group: it would join gloo's threads
    without releasing the GIL, which one of them may wait for. A group that
    :func:`set_up_cpu_distributed` started is ended at the latest when the process exits.
    """
    if dist.is_initialized():
        gc.collect()
        dist.destroy_process_group()


def _adapt_strategy(cfg: Config) -> None:
    """Set up the strategy of a ``FlexibleRunner`` so that it does not ask for a GPU.

    Raises:
        LaunchError: a strategy that needs a GPU.
    """
    strategy = dict(cfg.get('strategy') or dict(type='DDPStrategy'))
    kind = strategy.get('type')
    kind = kind if isinstance(kind, str) else getattr(kind, '__name__', None)
    wrapper = dict(strategy.get('model_wrapper') or {})
    if kind == 'DDPStrategy':
        wrapper.setdefault('type', 'MMDistributedDataParallel')
        wrapper.setdefault('broadcast_buffers', False)
        wrapper['device_ids'] = None
    elif kind == 'FSDPStrategy':
        wrapper.setdefault('type', 'MMFullyShardedDataParallel')
        wrapper['device_id'] = 'cpu'
        strategy['state_dict_cfg'] = _without_offload(strategy.get('state_dict_cfg', 'local'))
    else:
        raise LaunchError(
            f'strategy.type {kind!r} needs a GPU; without one DDPStrategy and FSDPStrategy work'
        )
    strategy['model_wrapper'] = wrapper
    cfg.strategy = strategy
    # A FlexibleRunner needs the key.
    cfg.env_cfg = cfg.get('env_cfg') or {}


def _without_offload(state: str | dict[str, Any]) -> str | dict[str, Any]:
    """A ``state_dict_cfg`` without ``offload_to_cpu``, with which torch crashes on a CPU.

    In torch 2.x a full state dict that is offloaded from the CPU to the CPU is a view of memory
    that FSDP frees next.
    """
    if state == 'full':
        state = dict(
            state_dict_type='FULL_STATE_DICT',
            state_dict_config=dict(type='FullStateDictConfig', rank0_only=True),
            optim_state_dict_config=dict(type='FullOptimStateDictConfig', rank0_only=True),
        )
    if isinstance(state, dict):
        state = dict(state)
        for key in ('state_dict_config', 'optim_state_dict_config'):
            if isinstance(state.get(key), dict):
                state[key] = {**state[key], 'offload_to_cpu': False}
    return state


def _start_gloo(timeout: float | None) -> None:
    missing = [name for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK') if name not in os.environ]
    if missing:
        raise LaunchError(
            f'--launcher pytorch, but {", ".join(missing)} is not in the environment; start the '
            'processes with torchrun, as tools/dist_train.sh does'
        )
    # Before torch 2.1 the timeout could not be None.
    limit: dict[str, Any] = {}
    if timeout is not None:
        limit['timeout'] = datetime.timedelta(seconds=timeout)
    dist.init_process_group('gloo', **limit)
    # A running gloo thread occasionally aborts the process at its exit.
    atexit.register(close_distributed)
