"""One process of a distributed test; the tests in this folder start it by torchrun.

``python worker.py CASES OUT`` trains a small model for a few steps with each rule. Rank 0 writes
the whole parameters and the records of all steps. Without torchrun, the run is the reference: one
process with the whole batch.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
from torch import nn

import gclip_mm
from gclip_mm.engine.dist import close_distributed

STEPS = 6
SGD = dict(lr=0.1, momentum=0.9)
BATCH = 8


class Net(nn.Module):
    """Plain, grouped and transposed convolutions, a head, and an extra parameter ``scale``."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3)
        self.grouped = nn.Conv2d(6, 6, 3, groups=3)
        self.up = nn.ConvTranspose2d(6, 4, 2)
        self.norm = nn.GroupNorm(2, 4)
        self.head = nn.Linear(4, 5)
        self.scale = nn.Parameter(torch.ones(1, 3))

    def forward(self, x):
        x = self.grouped(self.stem(x).relu()).relu()
        x = self.norm(self.up(x)).mean((2, 3))
        return self.head(x) * self.scale.sum()


def make_net() -> Net:
    torch.manual_seed(0)
    return Net()


def batch(step: int, rank: int, world: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(BATCH, 3, 8, 8, generator=generator) * (50.0 if step == 2 else 1.0)
    return images.chunk(world)[rank]


def make_optimizer(kind: str, params) -> torch.optim.Optimizer:
    if kind.startswith('sgd'):
        momentum = 0.0 if kind.endswith('plain') else 0.9
        return torch.optim.SGD(params, lr=0.1, momentum=momentum, fused=kind.endswith('fused'))
    return torch.optim.AdamW(params, lr=0.01, fused=kind.endswith('fused'))


def wrap(model: nn.Module, how: str) -> nn.Module:
    if how in ('single', 'ddp', 'zero'):
        return model if how == 'single' else nn.parallel.DistributedDataParallel(model)
    if how == 'fsdp1':
        from torch.distributed.fsdp import FullyShardedDataParallel

        return FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device('cpu'))
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    world = dist.get_world_size()
    if how == 'hsdp':
        mesh = init_device_mesh('cpu', (2, world // 2), mesh_dim_names=('replicate', 'shard'))
    else:
        mesh = init_device_mesh('cpu', (world,))
    if how == 'tp':
        from torch.distributed.tensor import Replicate
        from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

        mesh = init_device_mesh('cpu', (world // 2, 2), mesh_dim_names=('data', 'tensor'))
        split = ColwiseParallel(output_layouts=Replicate(), use_local_output=True)
        parallelize_module(model, mesh['tensor'], {'head': split})
        mesh = mesh['data']
    if how == 'mixed':
        # The head stays a plain module on every rank; `run` averages its gradients.
        for child in (model.stem, model.grouped, model.up, model.norm):
            fully_shard(child, mesh=mesh)
        return model
    fully_shard(model, mesh=mesh)
    return model


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if hasattr(tensor, 'full_tensor') else tensor


def state_of(model: nn.Module, how: str) -> dict[str, torch.Tensor]:
    if how == 'fsdp1':
        from torch.distributed.fsdp import FullyShardedDataParallel

        with FullyShardedDataParallel.summon_full_params(model):
            return {
                name.replace('_fsdp_wrapped_module.', ''): p.detach().clone()
                for name, p in model.named_parameters()
            }
    return {
        name.removeprefix('module.'): whole(p.detach()).clone()
        for name, p in model.named_parameters()
    }


def set_params(model: nn.Module, how: str, params: dict[str, torch.Tensor]) -> None:
    if how == 'fsdp1':
        from torch.distributed.fsdp import FullyShardedDataParallel

        with FullyShardedDataParallel.summon_full_params(model), torch.no_grad():
            for name, p in model.named_parameters():
                p.copy_(params[name.replace('_fsdp_wrapped_module.', '')])
        return
    from torch.distributed.tensor import distribute_tensor

    with torch.no_grad():
        for name, p in model.named_parameters():
            value = params[name.removeprefix('module.')]
            if hasattr(p, 'to_local'):
                value = distribute_tensor(value, p.device_mesh, p.placements)
            p.copy_(value)


def require_same(left, right) -> None:
    if isinstance(left, dict):
        left, right = list(left.values()), list(right.values())
    if isinstance(left, list):
        for pair in zip(left, right, strict=True):
            require_same(*pair)
    elif not (torch.equal(left, right) if isinstance(left, torch.Tensor) else left == right):
        raise AssertionError(f'{left} came back as {right}')


@contextlib.contextmanager
def watch_collectives(found: list[list[int]]):
    """Append the bytes of every all-reduce of a step; there must be no other collective."""
    from torch.distributed.tensor.debug import CommDebugMode

    messages: list[int] = []
    all_reduce = dist.all_reduce

    def noted(tensor, *args, **kwargs):
        messages.append(tensor.numel() * tensor.element_size())
        return all_reduce(tensor, *args, **kwargs)

    with CommDebugMode() as mode, mock.patch.object(dist, 'all_reduce', noted):
        yield
    if mode.get_total_counts() != len(messages):
        raise AssertionError(f'{mode.get_comm_counts()}, of which {len(messages)} all-reduces')
    found.append(messages)


def poison(model: nn.Module, how: str) -> None:
    """Put a NaN into each gradient: on the last rank only if gradients are sharded."""
    alone = how in ('fsdp1', 'fsdp2')
    if alone and dist.get_rank() < dist.get_world_size() - 1:
        return
    for p in model.parameters():
        if p.grad is not None and p.grad.numel():
            grad = p.grad.to_local() if hasattr(p.grad, 'to_local') else p.grad
            grad.view(-1)[:1] = float('nan')


def run(case: dict) -> dict:
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    how = case['how'] if world > 1 else 'single'
    model = wrap(make_net(), how)
    if how == 'zero':
        from torch.distributed.optim import ZeroRedundancyOptimizer

        adam = case['optimizer'] == 'adamw'
        kind = (torch.optim.AdamW, dict(lr=0.01)) if adam else (torch.optim.SGD, SGD)
        optimizer = ZeroRedundancyOptimizer(model.parameters(), kind[0], **kind[1])
    else:
        optimizer = make_optimizer(case['optimizer'], model.parameters())
    handle = gclip_mm.attach(optimizer, case['clip_grad'], model=model)
    records, collectives, half, first = [], [], {}, 0
    if 'from' in case:
        file, key = case['from']
        half = torch.load(file, weights_only=True)[key]['half']
        set_params(model, how, half['params'])
        handle.load_state_dict(half['state'])
        require_same(handle.state_dict(), half['state'])
        first = STEPS // 2
    # Ranks that share a layer get the same part of the batch.
    part, parts = (rank // 2, world // 2) if how == 'tp' else (rank, world)
    for step in range(first, STEPS):
        if case.get('half') and step == STEPS // 2:
            half = {'params': state_of(model, how), 'state': handle.state_dict()}
        optimizer.zero_grad()
        loss = model(batch(step, part, parts)).square().mean()
        loss.backward()
        if how == 'mixed':
            for p in (*model.head.parameters(), model.scale):
                dist.all_reduce(p.grad, op=dist.ReduceOp.SUM)
                p.grad.div_(world)
        if step == case.get('nan_step'):
            poison(model, how)
        watched = case.get('count') and world > 1
        with watch_collectives(collectives) if watched else contextlib.nullcontext():
            optimizer.step()
        records.append(handle.stats())
    params = state_of(model, how)
    state = handle.state_dict()
    # Loading the saved state restores it exactly, for each shard.
    handle.load_state_dict(state)
    require_same(handle.state_dict(), state)
    if world > 1:
        # Parameters must be bit-identical on all ranks.
        for name, tensor in params.items():
            other = tensor.clone()
            dist.broadcast(other, src=0)
            if not torch.equal(other, tensor):
                raise AssertionError(f'the ranks differ in {name}: {tensor - other}')
    found = {'params': params, 'records': records, 'state': state, 'collectives': collectives}
    return {**found, 'half': half}


def main(run: Callable[[dict], dict]) -> None:
    """Run the cases of a JSON file and save the results; both paths are on the command line."""
    cases, out = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    torch.set_num_threads(1)
    if 'WORLD_SIZE' in os.environ:
        dist.init_process_group('gloo')
    results = {}
    for name, case in cases.items():
        try:
            results[name] = run(case)
        except gclip_mm.ClipConfigError as error:
            results[name] = {'error': str(error)}
    if not dist.is_initialized() or dist.get_rank() == 0:
        torch.save(results, out)
    close_distributed()


if __name__ == '__main__':
    main(run)
