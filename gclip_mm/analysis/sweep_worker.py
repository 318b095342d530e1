"""The child processes of a sweep.

The fork server imports this module once, so that each child starts without further imports.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import traceback
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.utils import import_modules_from_strings

from .gradient_stats import save_stats
from .record import record_gradients
from .sweep_cell import run_cell

with contextlib.suppress(ImportError):
    # Every training of a detector needs it.
    import mmdet.apis  # noqa: F401


def train(
    cfg: Config, folder: Path, patience: int, slot: int, threads: int, keep_checkpoints: bool
) -> None:
    """Train a cell with all output in its folder, and save the outcome."""
    _set_up(cfg, folder / 'output.log', slot, threads)
    outcome = run_cell(cfg, patience)
    outcome.save(folder / 'outcome.json')
    if not keep_checkpoints:
        for path in folder.glob('*.pth'):
            path.unlink()
        (folder / 'last_checkpoint').unlink(missing_ok=True)


def record(cfg: Config, path: Path, threads: int) -> None:
    """Record gradients for the advisor."""
    _set_up(cfg, path.with_suffix('.log'), 0, threads)
    try:
        recording = record_gradients(cfg)
    except Exception:
        traceback.print_exc()
        sys.exit(1)
    half = path.with_name('half_' + path.name)
    save_stats(recording.stats, half)
    half.replace(path)


def clear(folder: Path, everything: bool) -> None:
    """Make the folder of a cell.

    Args:
        folder: the folder.
        everything: delete its content; otherwise an interrupted training can be resumed from it.
    """
    if everything and folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)


def _set_up(cfg: Config, log: Path, slot: int, threads: int) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ['CUDA_VISIBLE_DEVICES'] = _device(slot)
    torch.set_num_threads(threads)
    if cfg.get('custom_imports'):
        # The parent did this when it read the file.
        import_modules_from_strings(**cfg.custom_imports)


def _device(slot: int) -> str:
    """The GPU of a slot, among the visible ones."""
    seen = os.environ.get('CUDA_VISIBLE_DEVICES')
    names = seen.split(',') if seen else [str(i) for i in range(torch.cuda.device_count())]
    return names[slot % len(names)] if names else ''
