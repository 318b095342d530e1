"""Reading what a run left in its work_dir."""

from __future__ import annotations

import math

from gclip_mm.analysis import run_files
from gclip_mm.analysis.run_files import Scalars
from tests.analysis.run_logs import LEFT_OUT, METRICS, clipped_rows, log_rows, train_row


def test_resumed_run_is_read_as_one_run(tmp_path):
    log_rows(tmp_path, '20260101_000000', [train_row(s, 1.0) for s in (10, 20, 30)])
    # Resumed from a checkpoint of step 10: the rows after it are another run's past.
    log_rows(tmp_path, '20260102_000000', [*(train_row(s, 0.5) for s in (20, 30, 40)), METRICS])
    scalars = run_files.read_scalars(tmp_path)
    assert scalars.series('loss') == ([10, 20, 30, 40], [1.0, 0.5, 0.5, 0.5])
    assert scalars.last_metrics()['coco/bbox_mAP'] == 0.51
    assert run_files.main_metric(scalars) == 0.51
    assert run_files.find_log(tmp_path).name == '20260102_000000.log'


def test_nan_and_truncated_last_line_are_read(tmp_path):
    rows = [train_row(10, 2.0, grad_norm=3.0), train_row(20, math.nan), train_row(30, math.inf)]
    log_rows(tmp_path, '20260101_000000', rows, tail='{"lr": 0.1, "lo')
    scalars = run_files.read_scalars(tmp_path)
    assert scalars.lost_from() == 20
    assert scalars.series('grad_norm') == ([10], [3.0])
    assert scalars.last_metrics() == {} and run_files.main_metric(scalars) is None


def test_checkpoint_of_moved_work_dir_is_found(tmp_path):
    (tmp_path / 'iter_20.pth').write_bytes(b'')
    (tmp_path / 'last_checkpoint').write_text('/elsewhere/iter_20.pth')
    assert run_files.find_checkpoint(tmp_path) == tmp_path / 'iter_20.pth'


def test_run_that_only_skips_is_lost_despite_a_finite_loss():
    data = clipped_rows(range(5, 65, 5))
    for row in data[3:]:
        row |= dict(LEFT_OUT, grad_norm=math.inf)
    assert Scalars(data, []).lost_from() == 20


def test_window_maximum_of_nonfinite_does_not_mark_a_run_lost():
    """``nonfinite`` as docs/telemetry.md has it logged, with one skipped step in each window."""
    data = clipped_rows(range(10, 60, 10))
    for row in data[2:]:
        row |= dict(nonfinite=1.0, loss=math.nan, grad_norm=math.nan)
    assert Scalars(data, []).lost_from() is None
    assert Scalars(data, []).nonfinite_steps() == [30, 40, 50]


def test_run_that_zeroes_gradients_and_learns_is_not_lost():
    data = clipped_rows(range(10, 60, 10))
    for row in data:
        row |= dict(nonfinite=1.0, grad_norm=math.inf)
    assert Scalars(data, []).lost_from() is None
