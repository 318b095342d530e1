"""A few parameters, their gradients step by step, and a failure to be caught."""

import torch
from torch import nn

SHAPES = [(3, 2), (3,), (2, 3)]


def make_params(seed=0):
    """Three parameters, the same for the same seed."""
    rng = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=rng)) for shape in SHAPES]


def gradients(step, spoil=None):
    """Their gradients in a step; ``spoil`` is put into the last of them."""
    rng = torch.Generator().manual_seed(10 + step)
    grads = [torch.randn(shape, generator=rng) for shape in SHAPES]
    if spoil is not None:
        grads[2][0, 1] = spoil
    return grads


def set_grads(params, grads):
    """Give each parameter a copy of its gradient, or none."""
    for p, g in zip(params, grads, strict=True):
        p.grad = None if g is None else g.clone()


class Failure(Exception):
    """What the tests raise."""


def fail(*args, **kwargs):
    """Stands in for whatever is to fail."""
    raise Failure
