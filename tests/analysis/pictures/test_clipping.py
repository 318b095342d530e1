"""The figure shows what was logged."""

from __future__ import annotations

import numpy as np

from gclip_mm.analysis.pictures.clipping import COLORS, draw, run_names, series
from gclip_mm.analysis.run_files import Scalars, read_scalars
from tests.analysis.run_logs import clipped_rows, lines, write_scalars


def test_curves_show_the_logged_values(killed_run):
    scalars = read_scalars(killed_run)
    figure = draw({'run': scalars})
    loss, norm, share, skipped = figure.axes
    (x, y) = next(iter(lines(loss).values()))
    assert x.tolist() == [10, 20, 30, 40, 50], 'the killed run up to the resume, then the other'
    np.testing.assert_allclose(y, [1 / 10, 1 / 20, 2 / 30, 2 / 40, 2 / 50])
    color = COLORS[0]
    before, after = lines(norm)['-', color], lines(norm)['--', color]
    assert before[0].tolist() == [10, 20, 40, 50], 'no point where the norm is not finite'
    np.testing.assert_allclose(before[1], [1, 0.5, 0.5, 0.4])
    assert after[1].tolist() == [1.0] * 5
    assert lines(norm)[':', color][1].tolist() == [1.0] * 5
    assert next(iter(lines(share).values()))[1].tolist() == [0.25] * 5
    assert skipped.lines[0].get_xdata().tolist() == [30]
    assert scalars.nonfinite_steps() == [30]


def test_several_runs_share_one_figure(killed_run, tmp_path):
    other = tmp_path / 'other' / 'run'
    write_scalars(other / 't' / 'vis_data', clipped_rows(range(10, 110, 10), factor=3))
    assert run_names([killed_run, other]) == [f'{tmp_path.name}/run', 'other/run']
    runs = dict(zip('ab', map(read_scalars, (killed_run, other)), strict=True))
    figure = draw(runs, title='two')
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ['a', 'b']
    assert [label.get_text() for label in figure.axes[3].get_yticklabels()] == ['a', 'b']
    assert len({line.get_color() for line in figure.axes[0].lines}) == 2
    assert run_names([killed_run, killed_run]) == ['run (1)', 'run (2)']


def test_smoothing_is_a_running_median(tmp_path):
    data = clipped_rows(range(1, 8))
    data[3]['loss'] = 1e9
    write_scalars(tmp_path / 'v', data)
    _, values = series(read_scalars(tmp_path / 'v'), 'loss', smooth=3)
    expected = [np.median([data[max(i - 1, 0)]['loss'], data[i]['loss'],
                           data[min(i + 1, 6)]['loss']]) for i in range(7)]  # fmt: skip
    np.testing.assert_allclose(values, expected)


def test_run_without_clipping_says_so(tmp_path):
    write_scalars(tmp_path / 'v', [dict(lr=0.1, loss=1.0, step=s) for s in (1, 2)])
    figure = draw({'v': read_scalars(tmp_path / 'v')})
    assert 'did not clip' in figure.axes[1].texts[0].get_text()
    assert figure.axes[3].texts[0].get_text() == 'unknown'


def test_exploding_loss_does_not_flatten_the_other_curves(tmp_path):
    rows = clipped_rows(range(1, 9))
    write_scalars(tmp_path / 'calm', rows)
    write_scalars(
        tmp_path / 'wild', [*rows[:4], dict(rows[4], loss=1e16), dict(rows[5], loss=np.nan)]
    )
    runs = {name: read_scalars(tmp_path / name) for name in ('calm', 'wild')}
    assert draw(runs).axes[0].get_yscale() == 'log'
    assert draw({'calm': runs['calm']}).axes[0].get_yscale() == 'linear'


def test_single_log_line_is_drawn_as_a_marker(tmp_path):
    write_scalars(tmp_path / 'v', clipped_rows([10]))
    figure = draw({'v': read_scalars(tmp_path / 'v')})
    assert all(line.get_marker() == 'o' for line in figure.axes[0].lines)


def test_elementwise_threshold_is_not_drawn_as_a_norm():
    data = clipped_rows(range(10, 60, 10))
    for row in data:
        row |= dict(clip_threshold=0.001)
    # The run continues without clipping.
    data += [dict(lr=0.1, loss=1.0, step=60)]
    norm = draw({'value': Scalars(data, [])}).axes[1]
    assert (':', COLORS[0]) not in lines(norm)
    assert norm.get_title(loc='left').endswith('thresholds of value: 0.001')
