"""Distributed training on a machine without a GPU, which MMEngine does not start by itself."""

from __future__ import annotations

import atexit
import datetime
import gc
import os

import torch.distributed as dist
from mmengine.config import Config
from mmengine.device import get_device

from .launch import LaunchError


def set_up_cpu_distributed(cfg: Config) -> bool:
    """Start gloo and adapt ``cfg``, if ``cfg.launcher`` asks for processes on a CPU-only machine.

    MMEngine always begins with ``torch.cuda.set_device`` and wraps the model for one GPU a process.
    It leaves both alone when a process group exists and the config says how to wrap, so this does
    just that before the Runner is built. With a GPU, or with ``launcher='none'``, nothing happens.

    Args:
        cfg: A complete MMEngine config; ``launcher`` and ``env_cfg.dist_cfg.timeout`` are read,
            ``model_wrapper_cfg`` is written, or ``strategy`` where a ``FlexibleRunner`` trains.

    Returns:
        Whether this is a distributed run on CPU.

    Raises:
        LaunchError: For the launchers ``slurm`` and ``mpi`` on a CPU-only machine, when the
            process was not started by ``torchrun``, and for a strategy that needs a GPU.
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
        # What MMEngine takes from the config when it chooses the wrapper itself.
        wrapper['broadcast_buffers'] = False
        wrapper['find_unused_parameters'] = cfg.get('find_unused_parameters', False)
    wrapper.setdefault('type', 'MMDistributedDataParallel')
    wrapper['device_ids'] = None
    cfg.model_wrapper_cfg = wrapper
    return True


def close_distributed() -> None:
    """End the process group, if there is one, once nobody refers to the Runner any more.

    DDP's reducer must not be the last to hold the group: it would tear gloo's threads down without
    letting go of the GIL, which one of them may be waiting for. Of a group that
    :func:`set_up_cpu_distributed` has started it is done when the process exits, if not before.
    """
    if dist.is_initialized():
        gc.collect()
        dist.destroy_process_group()


def _adapt_strategy(cfg: Config) -> None:
    """What keeps the strategies of a ``FlexibleRunner`` from asking for a GPU."""
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
    # A FlexibleRunner does not start without it.
    cfg.env_cfg = cfg.get('env_cfg') or {}


def _without_offload(state: str | dict) -> str | dict:
    """A ``state_dict_cfg`` that moves nothing to the CPU: torch crashes where it is there already.

    In its 2.x releases a full state dict that is offloaded from the CPU to the CPU is a view of
    memory that FSDP frees next.
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
    options = {} if timeout is None else {'timeout': datetime.timedelta(seconds=timeout)}
    dist.init_process_group('gloo', **options)
    # A process that ends with gloo's threads at work is now and then aborted by one of them.
    atexit.register(close_distributed)
