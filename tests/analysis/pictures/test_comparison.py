"""The curves of runs side by side."""

from __future__ import annotations

import math

import matplotlib.pyplot as plt

from gclip_mm.analysis.pictures.comparison import Run, draw_curves
from gclip_mm.analysis.run_files import read_scalars
from tests.analysis.run_logs import log_rows, train_row


def curves(tmp_path, **losses):
    """The panel of the losses of some runs."""
    runs = []
    for label, values in losses.items():
        work_dir = tmp_path / label
        log_rows(work_dir, '20260101_000000', [train_row(k + 1, x) for k, x in enumerate(values)])
        runs.append(Run(label, work_dir, read_scalars(work_dir)))
    figure, axes = plt.subplots(2, 1)
    draw_curves(axes, runs)
    plt.close(figure)
    return axes[0]


def test_exploding_loss_of_a_lost_run_does_not_flatten_the_others(tmp_path):
    axes = curves(tmp_path, lost=[3.0, 4.0, 1e11, math.nan], good=[3.0, 2.0, 1.5, 1.0])
    low, high = axes.get_ylim()
    assert low < 1.0 and 3.0 < high < 4.0
    assert any(list(line.get_ydata()) == [3.0, 4.0, 1e11] for line in axes.lines)


def test_all_losses_are_in_the_panel_if_no_run_is_lost_or_all_are(tmp_path):
    axes = curves(tmp_path / 'a', high=[50.0, 40.0], good=[3.0, 2.0])
    assert axes.get_ylim()[1] > 50
    axes = curves(tmp_path / 'b', one=[3.0, 80.0, math.nan], other=[3.0, 60.0, math.nan])
    assert axes.get_ylim()[1] > 80
