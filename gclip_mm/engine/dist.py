"""Distributed training on a machine without a GPU, which MMEngine does not start by itself."""

from __future__ import annotations

import datetime
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
            ``model_wrapper_cfg`` is written.

    Returns:
        Whether this is a distributed run on CPU.

    Raises:
        LaunchError: For the launchers ``slurm`` and ``mpi`` on a CPU-only machine, and when the
            process was not started by ``torchrun``.
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

    wrapper = dict(cfg.get('model_wrapper_cfg') or {})
    if not wrapper:
        # What MMEngine takes from the config when it chooses the wrapper itself.
        wrapper['broadcast_buffers'] = False
        wrapper['find_unused_parameters'] = cfg.get('find_unused_parameters', False)
    wrapper.setdefault('type', 'MMDistributedDataParallel')
    wrapper['device_ids'] = None
    cfg.model_wrapper_cfg = wrapper
    return True


def _start_gloo(timeout: float | None) -> None:
    missing = [name for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK') if name not in os.environ]
    if missing:
        raise LaunchError(
            f'--launcher pytorch, but {", ".join(missing)} is not in the environment; start the '
            'processes with torchrun, as tools/dist_train.sh does'
        )
    options = {} if timeout is None else {'timeout': datetime.timedelta(seconds=timeout)}
    dist.init_process_group('gloo', **options)
