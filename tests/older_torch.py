"""Skips the tests that need what an older PyTorch does not have.

A test is skipped where PyTorch itself raises, while it runs, that it lacks a feature of a later
release. An error of any other kind, and any error at all on a current PyTorch, stays a failure.
``python -m pytest -rs`` counts the skipped tests by feature.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from gclip_mm.compat import TORCH


class Lacking(NamedTuple):
    """A feature of PyTorch, and what an older one raises in its place.

    Attributes:
        since: the first release that has it.
        feature: what the reason of the skipped test says.
        error: matches the text of the error, its class included.
    """

    since: tuple[int, int]
    feature: str
    error: str


FEATURES = [
    Lacking((2, 4), 'fused optimizers on a CPU', r'RuntimeError: `fused=True` requires all'),
    Lacking((2, 3), 'a fused SGD', r"TypeError: SGD\.__init__\(\) got an unexpected .* 'fused'"),
    Lacking((2, 4), 'a fused Adagrad', r"TypeError: Adagrad\.__init__\(\) got an .* 'fused'"),
    Lacking((2, 3), 'a loss scaler on a CPU', r"module 'torch\.amp' has no attribute 'GradScaler'"),
    Lacking((2, 3), 'a loss scaler on a CPU', r"name 'GradScaler' from 'torch\.amp'"),
    Lacking((2, 3), 'float16 autocast on a CPU', r"dtype 'float16' on a CPU needs PyTorch 2\.3"),
    Lacking((2, 1), 'FSDP on a CPU', r'RuntimeError: Found no NVIDIA driver'),
    Lacking((2, 1), 'parametrizations.weight_norm', r"parametrizations' has no .* 'weight_norm'"),
    Lacking((2, 1), 'float16 kernels on a CPU', r"RuntimeError: .* not implemented for 'Half'"),
    Lacking((2, 2), 'compiled optimizer steps', r'Unsupported: inline in skipfiles: .*\.step'),
    Lacking((2, 1), 'torch.compiler', r"module 'torch' has no attribute 'compiler'"),
]


def lacking(error: BaseException) -> str | None:
    """Why a test that raised this error cannot run on the installed PyTorch; None if it can."""
    seen: set[int] = set()
    chain: BaseException | None = error
    while chain is not None and id(chain) not in seen:
        seen.add(id(chain))
        text = f'{type(chain).__name__}: {chain}'
        for since, feature, pattern in FEATURES:
            if since > TORCH and re.search(pattern, text):
                return f'PyTorch {".".join(map(str, TORCH))} does not have {feature}'
        chain = chain.__cause__ or chain.__context__
    return None
