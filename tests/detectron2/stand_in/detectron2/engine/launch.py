"""Spawns the ranks of a training."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch.distributed as dist
import torch.multiprocessing as mp

from ..utils import comm


def launch(
    main_func: Callable[..., Any],
    num_gpus_per_machine: int,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str | None = None,
    args: tuple[Any, ...] = (),
) -> None:
    world_size = num_machines * num_gpus_per_machine
    if world_size == 1:
        main_func(*args)
        return
    setting = (main_func, world_size, num_gpus_per_machine, machine_rank, dist_url, args)
    mp.start_processes(_worker, nprocs=num_gpus_per_machine, args=setting, daemon=False)


def _worker(
    local_rank: int,
    main_func: Callable[..., Any],
    world_size: int,
    per_machine: int,
    machine_rank: int,
    dist_url: str,
    args: tuple[Any, ...],
) -> None:
    rank = machine_rank * per_machine + local_rank
    dist.init_process_group('gloo', init_method=dist_url, world_size=world_size, rank=rank)
    comm.synchronize()
    main_func(*args)
    # A running gloo thread occasionally aborts the process at its exit.
    gc.collect()
    dist.destroy_process_group()
