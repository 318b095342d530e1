"""Skips the tests that need what an older PyTorch does not have.

A test is skipped where PyTorch itself raises, while it runs, that it lacks a feature of a later
release. An error of any other kind, an error of PyTorch at a line of gclip_mm (which has to do
without the feature, by ``compat.py``), and any error at all on a current PyTorch stay failures.
``python -m pytest -rs`` counts the skipped tests by feature.
"""

from __future__ import annotations

import re
import traceback
from pathlib import Path
from typing import NamedTuple

import torch

import gclip_mm
from gclip_mm.compat import TORCH

_OURS = Path(gclip_mm.__file__).parent
_THEIRS = Path(torch.__file__).parent


class Lacking(NamedTuple):
    """A feature of PyTorch, and what an older one raises in its place.

    Attributes:
        since: the first release that has it.
        feature: what the reason of the skipped test says.
        error: matches the text of the error, its class included.
        through_us: whether a line of gclip_mm may raise it: it passes on what the test hands it.
    """

    since: tuple[int, int]
    feature: str
    error: str
    through_us: bool = False


FEATURES = [
    Lacking((2, 4), 'fused optimizers on a CPU', r'RuntimeError: `fused=True` requires all'),
    Lacking((2, 3), 'a fused SGD', r"TypeError: SGD\.__init__\(\) got an unexpected .* 'fused'"),
    Lacking((2, 4), 'a fused Adagrad', r"TypeError: Adagrad\.__init__\(\) got an .* 'fused'"),
    Lacking((2, 3), 'a loss scaler on a CPU', r"module 'torch\.amp' has no attribute 'GradScaler'"),
    Lacking((2, 3), 'a loss scaler on a CPU', r"name 'GradScaler' from 'torch\.amp'"),
    Lacking(
        (2, 3), 'float16 autocast on a CPU', r"dtype 'float16' on a CPU needs PyTorch 2\.3", True
    ),
    Lacking((2, 1), 'FSDP on a CPU', r'RuntimeError: Found no NVIDIA driver'),
    Lacking((2, 1), 'parametrizations.weight_norm', r"parametrizations' has no .* 'weight_norm'"),
    Lacking(
        (2, 1), 'float16 kernels on a CPU', r"RuntimeError: .* not implemented for 'Half'", True
    ),
    Lacking((2, 2), 'compiled optimizer steps', r'Unsupported: inline in skipfiles: .*\.step'),
    Lacking((2, 1), 'torch.compiler', r"module 'torch' has no attribute 'compiler'"),
]


def lacking(error: BaseException) -> str | None:
    """Why a test that raised this error cannot run on the installed PyTorch; None if it can."""
    chain: BaseException | None = error
    while chain is not None:
        text = f'{type(chain).__name__}: {chain}'
        for since, feature, pattern, through_us in FEATURES:
            if since > TORCH and re.search(pattern, text) and (through_us or not _is_ours(chain)):
                return f'PyTorch {".".join(map(str, TORCH))} does not have {feature}'
        chain = chain.__cause__ or (None if chain.__suppress_context__ else chain.__context__)
    return None


def _is_ours(error: BaseException) -> bool:
    """Whether the innermost line outside of PyTorch that raised the error is one of gclip_mm."""
    files = [Path(frame.f_code.co_filename) for frame, _ in traceback.walk_tb(error.__traceback__)]
    callers = [file for file in files if _THEIRS not in file.parents and file.is_absolute()]
    return bool(callers) and _OURS in callers[-1].parents
