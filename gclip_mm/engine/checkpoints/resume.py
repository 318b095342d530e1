"""Finds the last complete checkpoint of a run.

MMEngine resumes from the file that ``last_checkpoint`` names without checking it. A run that was
killed while writing leaves a truncated file, or an empty ``last_checkpoint``.
"""

from __future__ import annotations

import logging
import os
import pickle
import zipfile
from pathlib import Path

import torch
from mmengine.logging import print_log

from ...compat import LOAD_MAPPED
from .structure import read_structure


class ResumeError(RuntimeError):
    """There are checkpoints, but no readable one."""


def check_checkpoint(path: str | Path) -> str | None:
    """Describe what is wrong with a checkpoint; None if it is complete.

    Verifies the checksum of every record and reads the structure without loading a tensor. It takes
    about as long as reading the file once.

    Args:
        path: a file, or a folder with one file per rank.
    """
    path = Path(path)
    if path.is_dir():
        return _check_shards(path)
    if not path.is_file():
        return 'the file does not exist'
    try:
        is_zip = zipfile.is_zipfile(path)
        if is_zip:
            with zipfile.ZipFile(path) as archive:
                bad = archive.testzip()
            if bad is not None:
                return f'its record {bad} is damaged'
        torch.load(
            str(path), map_location='cpu', weights_only=True, **(LOAD_MAPPED if is_zip else {})
        )
    except pickle.UnpicklingError as error:
        # A complete file may hold classes that are not on the allow-list of torch.load.
        return None if is_zip and 'weights_only' in str(error).lower() else _first_line(error)
    except Exception as error:  # the type depends on the damage
        return _first_line(error)
    return None


def _check_shards(folder: Path) -> str | None:
    """Check a folder with one file per rank, as ``FSDPStrategy`` writes by default.

    A folder of another strategy, such as DeepSpeed's, counts as complete.
    """
    files = {path.name: path for path in folder.glob('rank*.pth')}
    # Every rank writes its own file; a killed one may have written none.
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
    """The checkpoint from which the run of a work dir can be resumed.

    This is the one that ``last_checkpoint`` names, if it is complete; else the newest complete one
    beside it or in the work dir. Each skipped file causes a warning. Nothing is deleted.

    Args:
        work_dir: the folder with ``last_checkpoint``.

    Returns:
        str or None: the path; None if the run has not saved a checkpoint yet.

    Raises:
        ResumeError: ``last_checkpoint`` exists, but no checkpoint is readable.

    Example:
        >>> cfg.resume, cfg.load_from = True, find_resumable(cfg.work_dir)
    """
    work_dir = Path(work_dir)
    pointer = work_dir / 'last_checkpoint'
    named = pointer.read_text().strip() if pointer.is_file() else ''
    if '://' in named:
        # A remote path, which only MMEngine's file backends can read.
        return named
    if pointer.is_file() and not named:
        _warn(f'{pointer} is empty: the run was killed while writing it')
    reasons: list[str] = []
    for path in _candidates(work_dir, named):
        reason = check_checkpoint(path)
        if reason is None and path != Path(named) and not _has_optimizer(path):
            # Files of save_best and published_keys are for testing, not for resuming.
            continue
        if reason is None:
            if reasons or path != Path(named):
                _warn(f'Resuming from {path}, the last complete checkpoint')
            return str(path)
        reasons.append(f'{path}: {reason}')
        _warn(f'Skipped the checkpoint {path}: {reason}')
    if named:
        raise ResumeError(
            f'no checkpoint of {work_dir} can be read ({"; ".join(reasons)}). Give another one as '
            'load_from, or start a new run in another work dir'
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
        checkpoint = read_structure(path)
    except Exception:  # a complete file of another kind
        return False
    return isinstance(checkpoint, dict) and 'optimizer' in checkpoint and 'meta' in checkpoint


def _first_line(error: Exception) -> str:
    return f'{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ""}'


def _warn(message: str) -> None:
    print_log(message, logger='current', level=logging.WARNING)
