"""Reads the work_dir of a training run: config, checkpoint, log and logged scalars."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: A mean over several steps may exceed the threshold of the last step by up to this factor.
_MOST_ABOVE = 2.0


class RunFilesError(Exception):
    """A work_dir lacks a file; the message names the file and a remedy."""


@dataclass(frozen=True)
class Scalars:
    """The rows of a run's ``scalars.json``.

    Attributes:
        train (list[dict]): Rows logged while training, by rising ``step``.
        val (list[dict]): Rows of metrics, in the order they were logged.
    """

    train: list[dict[str, Any]]
    val: list[dict[str, Any]]

    def series(self, key: str) -> tuple[list[int], list[float]]:
        """Steps and values of a training scalar, where it was logged. NaN and inf are kept."""
        rows = [row for row in self.train if key in row]
        return [row['step'] for row in rows], [float(row[key]) for row in rows]

    def last_metrics(self) -> dict[str, float]:
        """The metrics of the last validation, as ``<prefix>/<name>``; empty if there was none."""
        for row in reversed(self.val):
            metrics = {key: value for key, value in row.items() if '/' in key}
            if metrics:
                return metrics
        return {}

    def members(self) -> list[str]:
        """Names of the optimizers of an ``OptimWrapperDict``; empty for a single optimizer."""
        keys = dict.fromkeys(key for row in self.train for key in row)
        return [key.removesuffix('.grad_norm') for key in keys if key.endswith('.grad_norm')]

    def member(self, name: str) -> Scalars:
        """The scalars of one optimizer, and those that belong to no optimizer."""
        own = f'{name}.'
        others = tuple(f'{other}.' for other in self.members() if other != name)
        train = [
            {key.removeprefix(own): v for key, v in row.items() if not key.startswith(others)}
            for row in self.train
        ]
        return Scalars(train, self.val)

    def bounds_the_norm(self) -> bool:
        """Whether ``clip_threshold`` bounds the norm of the whole gradient.

        The threshold of ``ValueClip`` bounds single elements. With rules for some parameters, the
        threshold of the outer rule bounds the others only. In both cases the norm after clipping
        is far above the threshold.
        """
        ratios = [
            row['grad_norm_post'] / row['clip_threshold']
            for row in self.train
            if row.get('clip_threshold', 0) > 0
            and math.isfinite(row.get('grad_norm_post', math.nan))
        ]
        return not ratios or statistics.median(ratios) < _MOST_ABOVE

    def lost_from(self) -> int | None:
        """The step from which the run learned nothing until the end of the log; None if it did.

        MMEngine logs the mean loss of a window, which is NaN for as long as one step in the window
        is. With clipping, the logged step decides: a skipped step has no threshold. At least two
        such steps are required.
        """
        if members := self.members():
            starts = [self.member(name).lost_from() for name in members]
            return min((start for start in starts if start is not None), default=None)
        start, count = None, 0
        for row in self.train:
            bad = not math.isfinite(row.get('loss', 0.0))
            if 'nonfinite' in row:
                decided = (row.get(key, math.nan) for key in ('clip_threshold', 'clip_coef'))
                # 1: every step since the line before.
                bad = row['nonfinite'] >= 1 and any(map(math.isnan, decided))
            start, count = (
                (row['step'] if start is None else start, count + 1) if bad else (None, 0)
            )
        least = 2 if count and 'nonfinite' in self.train[-1] else 1
        return start if count >= least else None

    def shows_nonfinite(self) -> bool:
        """Whether the log says of a step that its gradient was not finite: not without clipping."""
        return any({'nonfinite', 'grad_norm'} & row.keys() for row in self.train)

    def nonfinite_steps(self) -> list[int]:
        """Steps of the log lines that show a non-finite gradient, each of them once."""
        steps, before = [], 0.0
        for row in self.train:
            norm = row.get('grad_norm', 0.0)
            # The norm is a mean over a window, and stays NaN after the step itself.
            news = not math.isfinite(norm) and (math.isfinite(before) or 'nonfinite' not in row)
            if row.get('nonfinite', 0) > 0 or news:
                steps.append(row['step'])
            before = norm
        return steps


def main_metric(scalars: Scalars) -> float | None:
    """The last mAP: that of COCO if there is one, otherwise that of Pascal VOC."""
    metrics = scalars.last_metrics()
    for wanted in ('bbox_mAP', 'mAP'):
        for name, value in metrics.items():
            if name.split('/', 1)[1] == wanted:
                return float(value)
    return None


def _timestamps(work_dir: Path) -> list[Path]:
    """Timestamp folders of a work_dir, the oldest first; a resumed run has several."""
    return sorted(path.parents[1] for path in work_dir.glob('*/vis_data/scalars.json'))


def _scalar_files(path: Path) -> list[Path]:
    """The JSON logs of a work_dir or of one of its timestamp folders, or the named file."""
    if path.is_file():
        return [path]
    for near in ('scalars.json', 'vis_data/scalars.json'):
        if (path / near).is_file():
            return [path / near]
    return [folder / 'vis_data' / 'scalars.json' for folder in _timestamps(path)]


def read_scalars(work_dir: str | Path) -> Scalars:
    """Read the logged scalars; a resumed run is joined to the run that it continues.

    Args:
        work_dir: the work_dir of a run, one of its timestamp folders, or a ``scalars.json``.

    Raises:
        RunFilesError: nothing was logged.
    """
    work_dir = Path(work_dir)
    train: list[dict[str, Any]] = []
    val: list[dict[str, Any]] = []
    for file in _scalar_files(work_dir):
        rows = _rows(file)
        new = [row for row in rows if _is_training(row)]
        if new:
            # Rows after the point of resuming belong to the abandoned run.
            train = [row for row in train if row['step'] < new[0]['step']] + new
        val += [row for row in rows if not _is_training(row)]
    if not train and not val:
        raise RunFilesError(
            f'{work_dir} has no <timestamp>/vis_data/scalars.json with anything in it; is it the '
            'work_dir of a run, has the run got as far as its first log interval, and is '
            'LocalVisBackend, which writes that file, among the vis_backends of its visualizer?'
        )
    return Scalars(train, val)


def read_rows(work_dir: str | Path, name: str) -> list[dict[str, Any]]:
    """The rows, each with a ``step``, of a file that a hook writes beside ``scalars.json``.

    A resumed run is joined to the run that it continues.

    Args:
        work_dir: the work_dir of a run, or one of its timestamp folders.
        name: name of the file.

    Returns:
        list: empty if the file does not exist.
    """
    joined: list[dict[str, Any]] = []
    for file in (file.with_name(name) for file in _scalar_files(Path(work_dir))):
        rows = _rows(file) if file.exists() else []
        if rows:
            joined = [row for row in joined if row['step'] < rows[0]['step']] + rows
    return joined


def _is_training(row: dict[str, Any]) -> bool:
    """Whether a row is of training: only such a row has a learning rate."""
    return any(key.split('.')[-1] in ('lr', 'base_lr') for key in row)


def _rows(path: Path) -> list[dict[str, Any]]:
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue  # the run was killed while writing
    return rows


def find_log(work_dir: str | Path) -> Path | None:
    """The text log of the latest run."""
    logs = [log for folder in _timestamps(Path(work_dir)) for log in sorted(folder.glob('*.log'))]
    return logs[-1] if logs else None


def find_config(work_dir: str | Path) -> Path:
    """The config that MMEngine saved in the work_dir.

    Raises:
        RunFilesError: there is none.
    """
    configs = sorted(Path(work_dir).glob('*.py'), key=lambda path: path.stat().st_mtime)
    if not configs:
        raise RunFilesError(f'{work_dir} holds no config (*.py); name one with --config')
    return configs[-1]


def find_checkpoint(work_dir: str | Path) -> Path:
    """The last checkpoint of a run.

    Raises:
        RunFilesError: there is none.
    """
    work_dir = Path(work_dir)
    pointer = work_dir / 'last_checkpoint'
    if pointer.is_file():
        named = Path(pointer.read_text().strip())
        # The pointer holds the path at training time; the folder may have moved since.
        for path in (named, work_dir / named.name):
            if path.is_file():
                return path
    found = sorted(work_dir.glob('*.pth'), key=lambda path: path.stat().st_mtime)
    if not found:
        raise RunFilesError(f'{work_dir} holds no checkpoint (*.pth); name one with --checkpoint')
    return found[-1]
