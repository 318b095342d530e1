"""Two processes train with batch norm; one of them sees an infinite pixel in one step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import gclip_mm
from tests.distributed.worker import main

BAD = 2


class Mean(torch.autograd.Function):
    """The mean over all processes, with its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x / dist.get_world_size()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return Mean.forward(ctx, grad)


class SyncNorm(nn.BatchNorm2d):
    """A synchronised batch norm; torch's own needs a GPU."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        mean = Mean.apply(x.mean((0, 2, 3)))
        square = Mean.apply(x.square().mean((0, 2, 3)))
        var = square - mean.square()
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean.detach(), 0.1)
        self.running_var.lerp_(var.detach(), 0.1)
        x = (x - mean.view(1, -1, 1, 1)) * (var.view(1, -1, 1, 1) + self.eps).rsqrt()
        return x * self.weight.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)


def train(case: dict, left_out: bool) -> dict[str, Tensor]:
    """The state of this rank after six steps.

    Args:
        case: ``broadcast``, ``sync``, ``accumulate``, ``compiled``.
        left_out: do without the bad step, in place of showing the infinite pixel.
    """
    torch.manual_seed(0)
    norm: Callable[[int], nn.Module] = SyncNorm if case['sync'] else nn.BatchNorm2d
    net = nn.Sequential(nn.Conv2d(1, 4, 3), norm(4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
    net(torch.zeros(2, 1, 6, 6))
    spread: nn.Module = DistributedDataParallel(net, broadcast_buffers=case['broadcast'])
    model: Any = torch.compile(spread, backend='eager') if case['compiled'] else spread
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    gclip_mm.attach(optimizer, dict(type='NormClip', max_norm=0.5), model=model)
    generator = torch.Generator().manual_seed(dist.get_rank())
    for step in range(6):
        for _ in range(case['accumulate']):
            x = torch.randn(4, 1, 6, 6, generator=generator)
            if step == BAD and left_out:
                continue
            if step == BAD and dist.get_rank() == 1:
                x[0, 0, 0, 0] = torch.inf
            model(x).square().mean().backward()
        if not (step == BAD and left_out):
            optimizer.step()
        optimizer.zero_grad()
    return {name: value.clone() for name, value in net.state_dict().items()}


def run(case: dict) -> dict:
    """Whether both runs end with the same bits on every rank, and whether all are finite."""
    skipped, without = train(case, False), train(case, True)
    equal = all(torch.equal(skipped[name], value) for name, value in without.items())
    finite = all(bool(torch.isfinite(value).all()) for value in skipped.values())
    facts = torch.tensor([equal, finite], dtype=torch.int32)
    dist.all_reduce(facts, dist.ReduceOp.MIN)
    return dict(equal=bool(facts[0]), finite=bool(facts[1]))


if __name__ == '__main__':
    main(run)
