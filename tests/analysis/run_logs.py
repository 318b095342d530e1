"""Work dirs as a training leaves them, for the tests of what reads them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

#: What the record of a step that was left out says.
LEFT_OUT = dict(nonfinite=1.0, clip_coef=0.0, clip_threshold=math.nan)
METRICS = {'coco/bbox_mAP': 0.51, 'coco/bbox_mAP_50': 0.83, 'coco/bbox_mAP_75': 0.5, 'step': 30}


def write_scalars(folder: Path, rows: list[dict], tail: str = '') -> Path:
    """Write ``scalars.json`` into a new folder; ``tail`` is a line that was cut off."""
    folder.mkdir(parents=True)
    file = folder / 'scalars.json'
    file.write_text(''.join(json.dumps(row) + '\n' for row in rows) + tail)
    return file


def log_rows(work_dir: Path, timestamp: str, rows: list[dict], tail: str = '') -> None:
    """Write the files of one start of a run."""
    write_scalars(work_dir / timestamp / 'vis_data', rows, tail)
    (work_dir / timestamp / f'{timestamp}.log').write_text('log')


def train_row(step: int, loss: float, **more: float) -> dict:
    """A line of a run without clipping."""
    return {'lr': 0.1, 'loss': loss, 'step': step, 'iter': step, **more}


def clipped_rows(steps, factor=1.0):
    """Lines of a run that clips in each step."""
    return [
        train_row(
            s, factor / s, grad_norm=factor * 10 / s, grad_norm_post=1.0, clip_threshold=1.0,
            clip_coef=0.5, clip_fraction=0.25, nonfinite=0.0,
        )
        for s in steps
    ]  # fmt: skip


@pytest.fixture
def killed_run(tmp_path):
    """A run that was killed after step 40 and resumed from 20, with a skipped step at 30."""
    first = clipped_rows(range(10, 50, 10))
    second = clipped_rows(range(30, 60, 10), factor=2.0)
    second[0] |= dict(grad_norm=math.nan, nonfinite=1.0)
    second += [{'coco/bbox_mAP': 0.5, 'step': 50}, {'module_grad_norm.head': 3.0, 'step': 50}]
    run = tmp_path / 'run'
    write_scalars(run / '20240101_000000' / 'vis_data', first)
    write_scalars(run / '20240101_000100' / 'vis_data', second, tail='{"lr": 0.1, "los')
    return run


def lines(axes):
    """The lines of a plot as x and y, by style and colour."""
    return {
        (line.get_linestyle(), line.get_color()): (line.get_xdata(), line.get_ydata())
        for line in axes.lines
    }
