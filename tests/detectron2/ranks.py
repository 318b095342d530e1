"""Two processes that train the toy together on a CPU."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch import multiprocessing as mp

RULE = dict(type='NormClip', max_norm=0.5, max_consecutive_skips=3)


def train_on_two(folder: Path, faults: list[float | None]) -> list[list[dict[str, Any]]]:
    """Train once for each fault; returns what each of the two ranks found.

    A run has five iterations. In the third, rank 1 gets a batch with the fault; without a fault,
    the run passes over that iteration.
    """
    mp.start_processes(_rank, nprocs=2, args=(str(folder), faults))
    return [
        [torch.load(folder / f'{run}_{rank}.pt') for rank in range(2)] for run in range(len(faults))
    ]


def _rank(rank: int, folder: str, faults: list[float | None]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group('gloo', f'file://{folder}/rendezvous', rank=rank, world_size=2)
    for run, fault in enumerate(faults):
        torch.save(_train(rank, fault), f'{folder}/{run}_{rank}.pt')
    # As gclip_mm.engine.dist.close_distributed, which needs MMEngine: DDP must not hold the last
    # reference to the group.
    gc.collect()
    dist.destroy_process_group()


def _train(rank: int, fault: float | None) -> dict[str, Any]:
    """One run; a function of its own, so that no name holds the model when the group ends."""
    from detectron2.engine import SimpleTrainer

    from gclip_mm.clipping import GradClipEngine
    from gclip_mm.detectron2 import clip
    from tests.detectron2.toy import batches, make_model, weights

    data = batches(10)[rank::2]
    if fault is None:
        del data[2]
    elif rank == 1:
        data[2][0, 0] = fault
    model = make_model()
    ddp = torch.nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)
    skipped = []
    optimizer = clip(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), RULE, ddp)
    engine = GradClipEngine.on(optimizer)

    class Trainer(SimpleTrainer):
        def after_step(self) -> None:
            skipped.append(bool(engine.last_skipped))
            super().after_step()

    Trainer(ddp, data, optimizer).train(0, len(data))
    return {
        'weights': weights(model),
        'parameters': {name: p.detach() for name, p in model.named_parameters()},
        'skipped': sum(skipped),
    }
