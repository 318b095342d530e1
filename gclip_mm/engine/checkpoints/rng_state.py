"""The random state of a process as tensors and numbers, which any checkpoint can hold."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def capture_rng_state() -> dict[str, Any]:
    """Capture the states of the generators of Python, NumPy and PyTorch of this process.

    Returns:
        dict: ``python``: ``version``, ``state`` (625,) int64, ``gauss``; ``numpy``: ``key`` (624,)
        int64, ``pos``, ``has_gauss``, ``gauss``; ``torch``: the uint8 tensor of
        ``torch.get_rng_state``; ``cuda``: that of the current CUDA device, or None.
    """
    version, numbers, gauss = random.getstate()
    legacy: Any = np.random.get_state(legacy=False)
    uses_cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    return {
        'python': {'version': version, 'state': torch.tensor(numbers), 'gauss': gauss},
        'numpy': {
            'key': torch.from_numpy(legacy['state']['key'].astype(np.int64)),
            'pos': int(legacy['state']['pos']),
            'has_gauss': int(legacy['has_gauss']),
            'gauss': float(legacy['gauss']),
        },
        'torch': torch.get_rng_state(),
        'cuda': torch.cuda.get_rng_state() if uses_cuda else None,
    }


def restore_rng_state(state: dict[str, Any]) -> None:
    """Restore the states that :func:`capture_rng_state` returned; tensors may be on any device."""
    python, numpy = state['python'], state['numpy']
    random.setstate((python['version'], tuple(python['state'].tolist()), python['gauss']))
    np.random.set_state(
        (
            'MT19937',
            numpy['key'].cpu().numpy().astype(np.uint32),
            numpy['pos'],
            numpy['has_gauss'],
            numpy['gauss'],
        )
    )
    torch.set_rng_state(state['torch'].cpu())
    if state['cuda'] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state['cuda'].cpu())
