"""A few parameters, their gradients for each step, and a failure to raise."""

import torch
from torch import nn

SHAPES = [(3, 2), (3,), (2, 3)]


def make_params(seed=0):
    """Return three parameters that depend on the seed only."""
    rng = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=rng)) for shape in SHAPES]


def gradients(step, spoil=None):
    """Return their gradients in a step; ``spoil`` replaces one element of the last gradient."""
    rng = torch.Generator().manual_seed(10 + step)
    grads = [torch.randn(shape, generator=rng) for shape in SHAPES]
    if spoil is not None:
        grads[2][0, 1] = spoil
    return grads


def set_grads(params, grads):
    """Give each parameter a copy of its gradient, or None."""
    for p, g in zip(params, grads, strict=True):
        p.grad = None if g is None else g.clone()


class Failure(Exception):
    """The exception that the tests raise."""


def fail(*args, **kwargs):
    """Replacement for a function that has to fail."""
    raise Failure
