"""The figure shows what was logged."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from gclip_mm.analysis.pictures.clipping import COLORS, draw, run_names, series
from gclip_mm.analysis.run_files import Scalars, read_scalars


def write(path, rows):
    path.mkdir(parents=True)
    file = path / 'scalars.json'
    file.write_text('\n'.join(json.dumps(row) for row in rows) + '\n')
    return file


def rows(steps, factor=1.0, **more):
    return [
        dict(
            lr=0.1, loss=factor / s, grad_norm=factor * 10 / s, grad_norm_post=1.0,
            clip_threshold=1.0, clip_coef=0.5, clip_fraction=0.25, nonfinite=0.0,
            step=s, iter=s, **more,
        )
        for s in steps
    ]  # fmt: skip


@pytest.fixture
def run(tmp_path):
    """A run that was killed after step 40 and resumed from 20, with a skipped step at 30."""
    first = rows(range(10, 50, 10))
    second = rows(range(30, 60, 10), factor=2.0)
    second[0] |= dict(grad_norm=math.nan, nonfinite=1.0)
    write(tmp_path / 'run' / '20240101_000000' / 'vis_data', first)
    file = write(tmp_path / 'run' / '20240101_000100' / 'vis_data', second)
    with file.open('a') as log:
        log.write(json.dumps({'coco/bbox_mAP': 0.5, 'step': 50}) + '\n')
        log.write(json.dumps({'module_grad_norm.head': 3.0, 'step': 50}) + '\n')
        log.write('{"lr": 0.1, "los')
    return tmp_path / 'run'


def lines(axes):
    return {
        (line.get_linestyle(), line.get_color()): (line.get_xdata(), line.get_ydata())
        for line in axes.lines
    }


def test_curves_show_the_logged_values(run):
    scalars = read_scalars(run)
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


def test_several_runs_share_one_figure(run, tmp_path):
    other = tmp_path / 'other' / 'run'
    write(other / 't' / 'vis_data', rows(range(10, 110, 10), factor=3))
    assert run_names([run, other]) == [f'{tmp_path.name}/run', 'other/run']
    runs = dict(zip('ab', map(read_scalars, (run, other)), strict=True))
    figure = draw(runs, title='two')
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ['a', 'b']
    assert [label.get_text() for label in figure.axes[3].get_yticklabels()] == ['a', 'b']
    assert len({line.get_color() for line in figure.axes[0].lines}) == 2
    assert run_names([run, run]) == ['run (1)', 'run (2)']


def test_smoothing_is_a_running_median(tmp_path):
    data = rows(range(1, 8))
    data[3]['loss'] = 1e9
    write(tmp_path / 'v', data)
    _, values = series(read_scalars(tmp_path / 'v'), 'loss', smooth=3)
    expected = [np.median([data[max(i - 1, 0)]['loss'], data[i]['loss'],
                           data[min(i + 1, 6)]['loss']]) for i in range(7)]  # fmt: skip
    np.testing.assert_allclose(values, expected)


def test_run_without_clipping_says_so(tmp_path):
    write(tmp_path / 'v', [dict(lr=0.1, loss=1.0, step=s) for s in (1, 2)])
    figure = draw({'v': read_scalars(tmp_path / 'v')})
    assert 'did not clip' in figure.axes[1].texts[0].get_text()
    assert figure.axes[3].texts[0].get_text() == 'unknown'


def test_single_log_line_is_drawn_as_a_marker(tmp_path):
    write(tmp_path / 'v', rows([10]))
    figure = draw({'v': read_scalars(tmp_path / 'v')})
    assert all(line.get_marker() == 'o' for line in figure.axes[0].lines)


def test_elementwise_threshold_is_not_drawn_as_a_norm():
    data = rows(range(10, 60, 10))
    for row in data:
        row |= dict(clip_threshold=0.001)
    # The run continues without clipping.
    data += [dict(lr=0.1, loss=1.0, step=60)]
    norm = draw({'value': Scalars(data, [])}).axes[1]
    assert (':', COLORS[0]) not in lines(norm)
    assert norm.get_title(loc='left').endswith('thresholds of value: 0.001')
