"""Ranks."""

from __future__ import annotations

from typing import Any

from torch import distributed as dist


def get_world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def get_rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def get_local_rank() -> int:
    # Tests run on one machine.
    return get_rank()


def is_main_process() -> bool:
    return get_rank() == 0


def synchronize() -> None:
    if get_world_size() > 1:
        dist.barrier()


def gather(data: Any) -> list[Any]:
    """What every rank gives, on the main process; an empty list elsewhere."""
    if get_world_size() == 1:
        return [data]
    everything = [None] * get_world_size() if is_main_process() else None
    dist.gather_object(data, everything)
    return everything or []
