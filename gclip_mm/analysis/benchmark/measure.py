"""Measurements of a step function: time, host reads, memory, kernel launches."""

from __future__ import annotations

import contextlib
import gc
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Step = Callable[[], object]


def synchronize(device: torch.device) -> None:
    """Wait for a GPU; do nothing on a CPU."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def time_in_turn(
    steps: dict[str, Step],
    prepare: Callable[[], None],
    device: torch.device,
    rounds: int,
    progress: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Run every step once in each round, in rotating order, so that drift affects all alike.

    Args:
        steps: the steps to time, by name.
        prepare: called before each run, not timed.
        device: is synchronized before the clock is read.
        rounds: number of timed rounds; two more run first.
        progress: called after each of the ``rounds + 2`` rounds, not timed.

    Returns:
        Seconds of each round, by name.
    """
    names = list(steps)
    times: dict[str, list[float]] = {name: [] for name in names}
    gc.collect()
    gc.disable()
    try:
        for round_ in range(-2, rounds):
            shift = round_ % len(names)
            for name in names[shift:] + names[:shift]:
                prepare()
                synchronize(device)
                start = time.perf_counter()
                steps[name]()
                synchronize(device)
                if round_ >= 0:
                    times[name].append(time.perf_counter() - start)
            progress()
    finally:
        gc.enable()
    return times


def ratio(times: dict[str, list[float]], name: str, base: str) -> float:
    """Median over the rounds of the ratio of two steps, which ran close together in time."""
    return statistics.median(a / b for a, b in zip(times[name], times[base], strict=True))


class _ReadCounter(TorchDispatchMode):
    """Counts the operations by which the host reads a value of a device."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name() in ('aten::_local_scalar_dense', 'aten::item', 'aten::equal'):
            self.reads += 1
        return func(*args, **(kwargs or {}))


def host_reads(step: Step) -> int:
    """Number of host reads of one step."""
    with _ReadCounter() as counter:
        step()
    return counter.reads


def peak_extra_bytes(step: Step, device: torch.device) -> int:
    """Peak of the memory that a step allocates, in bytes."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with (
        _silent_stderr(),
        torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
        ) as profile,
    ):
        step()
    changes = [
        (event.start_ns(), event.nbytes())
        for event in profile.profiler.kineto_results.events()
        if event.name() == '[memory]'
    ]
    held = peak = 0
    for _, change in sorted(changes, key=lambda pair: pair[0]):
        held += change
        peak = max(peak, held)
    return peak


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """Discard what the profiler of torch writes to file descriptor 2."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def kernel_launches(step: Step, device: torch.device) -> int | None:
    """Number of kernels that one step launches on a GPU; None on a CPU."""
    if device.type != 'cuda':
        return None
    cuda = [torch.profiler.ProfilerActivity.CUDA]
    with _silent_stderr(), torch.profiler.profile(activities=cuda) as profile:
        step()
        torch.cuda.synchronize(device)
    return sum(1 for event in profile.events() if event.device_type.name == 'CUDA')


def read_once(grads: list[Tensor]) -> Step:
    """A step that reads the memory of the gradients once: the lower bound for a norm."""
    flat = torch.cat([grad.reshape(-1) for grad in grads])
    return lambda: flat.sum()
