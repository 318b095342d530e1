"""Which checkpoint a run can really be resumed from.

MMEngine believes ``last_checkpoint``, whatever became of the file that it names. A run killed
while it wrote leaves a truncated file, or an empty ``last_checkpoint``.
"""

from __future__ import annotations

import logging
import os
import pickle
import zipfile
from pathlib import Path

import torch
from mmengine.logging import print_log


class ResumeError(RuntimeError):
    """There are checkpoints, but none that can be read."""


def check_checkpoint(path: str | Path) -> str | None:
    """What is wrong with a checkpoint file, in words; None if it is whole.

    Checks the sum of every record of the file and reads the structure without loading a tensor, so
    it takes about as long as reading the file once.
    """
    path = Path(path)
    if path.is_dir():
        return _check_shards(path)
    if not path.is_file():
        return 'there is no such file'
    try:
        is_zip = zipfile.is_zipfile(path)
        if is_zip:
            with zipfile.ZipFile(path) as archive:
                bad = archive.testzip()
            if bad is not None:
                return f'its record {bad} is damaged'
        torch.load(path, map_location='cpu', weights_only=True, mmap=is_zip or None)
    except pickle.UnpicklingError as error:
        # A whole file may hold classes that the safe loader has not been told of.
        return None if is_zip and 'weights_only' in str(error).lower() else _first_line(error)
    except Exception as error:  # torch raises whatever the damage leads to
        return _first_line(error)
    return None


def _check_shards(folder: Path) -> str | None:
    """The same for a folder with a file of each rank, as ``FSDPStrategy`` writes by default.

    A folder of another kind, such as DeepSpeed's, is left to its strategy.
    """
    files = {path.name: path for path in folder.glob('rank*.pth')}
    # Every rank writes for itself, and a kill can hit one of them before it has.
    ranks = max(len(files), int(os.environ.get('WORLD_SIZE', 1))) if files else 0
    for name in (f'rank{rank}.pth' for rank in range(ranks)):
        if name not in files:
            return f'{name} is not there'
        try:
            with zipfile.ZipFile(files[name]) as archive:
                bad = archive.testzip()
        except (OSError, zipfile.BadZipFile) as error:
            return f'{name}: {_first_line(error)}'
        if bad is not None:
            return f'record {bad} of {name} is damaged'
    return None


def find_resumable(work_dir: str | Path) -> str | None:
    """The checkpoint to resume the run of a work dir from.

    That is the one ``last_checkpoint`` names, if it is whole; else the newest whole one beside it
    or in the work dir, with a warning for each file that is passed over. Nothing is deleted.

    Args:
        work_dir: where the run keeps ``last_checkpoint``.

    Returns:
        str or None: None if the run has not yet saved a checkpoint.

    Raises:
        ResumeError: ``last_checkpoint`` is there, but no checkpoint that can be read.

    Example:
        >>> cfg.resume, cfg.load_from = True, find_resumable(cfg.work_dir)
    """
    work_dir = Path(work_dir)
    pointer = work_dir / 'last_checkpoint'
    named = pointer.read_text().strip() if pointer.is_file() else ''
    if '://' in named:
        # Not on this machine: left to MMEngine's file backends.
        return named
    if pointer.is_file() and not named:
        _warn(f'{pointer} is empty: the run was killed while it wrote it')
    reasons = []
    for path in _candidates(work_dir, named):
        reason = check_checkpoint(path)
        if reason is None and path != Path(named) and not _has_optimizer(path):
            # What save_best and published_keys write is for testing, not for going on.
            continue
        if reason is None:
            if reasons or path != Path(named):
                _warn(f'Resuming from {path}, the last checkpoint that is whole')
            return str(path)
        reasons.append(f'{path}: {reason}')
        _warn(f'Skipped the checkpoint {path}: {reason}')
    if named:
        raise ResumeError(
            f'no checkpoint of {work_dir} can be read ({"; ".join(reasons)}). Give another one as '
            'load_from, or start afresh in another work dir'
        )
    return None


def _candidates(work_dir: Path, named: str) -> list[Path]:
    """The named checkpoint, then the others, newest first."""
    first = [Path(named)] if named else []
    folders = {path.resolve(): path for path in [*(p.parent for p in first), work_dir]}
    others = {path for folder in folders.values() for path in folder.glob('*.pth')}
    taken = {path.resolve() for path in first}
    rest = [path for path in others if path.resolve() not in taken]
    return first + sorted(rest, key=lambda path: path.stat().st_mtime_ns, reverse=True)


def _has_optimizer(path: Path) -> bool:
    if path.is_dir():
        return True
    try:
        checkpoint = torch.load(path, map_location='cpu', weights_only=True, mmap=True)
    except Exception:  # a whole file of another kind
        return False
    return isinstance(checkpoint, dict) and 'optimizer' in checkpoint and 'meta' in checkpoint


def _first_line(error: Exception) -> str:
    return f'{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ""}'


def _warn(message: str) -> None:
    print_log(message, logger='current', level=logging.WARNING)
