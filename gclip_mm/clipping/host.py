"""Access to tensors in host memory without a device read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ['host', 'np']

try:
    import numpy as np

    # Raises where torch was built for another NumPy: torch 2.2 and older work with NumPy 1 only.
    torch.empty(0).numpy()
except (ImportError, RuntimeError):
    # torch and this package run without NumPy, or with one that is broken. A CPU tensor is then
    # treated like a tensor on any other device, whose values the host does not read.
    np = None  # type: ignore[assignment]


def host(tensor: Tensor) -> Any:
    """A NumPy view of a tensor in host memory, else None; never copies or waits.

    Unlike ``tensor.item()`` it issues no device read, so a hot path may branch on it.
    """
    return tensor.detach().numpy() if tensor.device.type == 'cpu' and np is not None else None
