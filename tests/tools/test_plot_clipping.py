"""The figure shows what was logged."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from .conftest import ROOT, load_tool

#: What the record of a step that was left out says.
LEFT_OUT = dict(nonfinite=1.0, clip_coef=0.0, clip_threshold=math.nan)


@pytest.fixture(scope='module')
def tool():
    # Its modules lie beside it and are found by its own line in sys.path.
    return load_tool(ROOT / 'tools' / 'analysis' / 'plot_clipping.py')


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


def test_curves_hold_the_logged_numbers(tool, run):
    scalars = tool.read_scalars(run)
    figure = tool.draw({'run': scalars})
    loss, norm, share, skipped = figure.axes
    (x, y) = next(iter(lines(loss).values()))
    assert x.tolist() == [10, 20, 30, 40, 50], 'the killed run up to the resume, then the other'
    np.testing.assert_allclose(y, [1 / 10, 1 / 20, 2 / 30, 2 / 40, 2 / 50])
    color = tool.COLORS[0]
    before, after = lines(norm)['-', color], lines(norm)['--', color]
    assert before[0].tolist() == [10, 20, 40, 50], 'no point where the norm is not finite'
    np.testing.assert_allclose(before[1], [1, 0.5, 0.5, 0.4])
    assert after[1].tolist() == [1.0] * 5
    assert lines(norm)[':', color][1].tolist() == [1.0] * 5
    assert next(iter(lines(share).values()))[1].tolist() == [0.25] * 5
    assert skipped.lines[0].get_xdata().tolist() == [30]
    assert scalars.nonfinite_steps() == [30]


@pytest.mark.parametrize('near', ['', '20240101_000100', '20240101_000100/vis_data/scalars.json'])
def test_run_by_folder_timestamp_or_file(tool, run, tmp_path, near, capsys):
    out = tmp_path / 'new' / 'x.png'
    assert tool.main([str(run / near), '--out', str(out)]) == 0
    assert out.stat().st_size > 10_000
    text = capsys.readouterr().out
    assert '1 of them tells of a gradient that is not finite' in text
    assert ('3 log lines' if near else '5 log lines') in text


def test_several_runs(tool, run, tmp_path):
    other = tmp_path / 'other' / 'run'
    write(other / 't' / 'vis_data', rows(range(10, 110, 10), factor=3))
    assert tool.run_names([run, other]) == [f'{tmp_path.name}/run', 'other/run']
    runs = dict(zip('ab', map(tool.read_scalars, (run, other)), strict=True))
    figure = tool.draw(runs, title='two')
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ['a', 'b']
    assert [label.get_text() for label in figure.axes[3].get_yticklabels()] == ['a', 'b']
    assert len({line.get_color() for line in figure.axes[0].lines}) == 2
    assert tool.run_names([run, run]) == ['run (1)', 'run (2)']


def test_smoothing_is_a_running_median(tool, tmp_path):
    data = rows(range(1, 8))
    data[3]['loss'] = 1e9
    write(tmp_path / 'v', data)
    _, values = tool.series(tool.read_scalars(tmp_path / 'v'), 'loss', smooth=3)
    expected = [np.median([data[max(i - 1, 0)]['loss'], data[i]['loss'],
                           data[min(i + 1, 6)]['loss']]) for i in range(7)]  # fmt: skip
    np.testing.assert_allclose(values, expected)


def test_a_run_that_did_not_clip(tool, tmp_path):
    write(tmp_path / 'v', [dict(lr=0.1, loss=1.0, step=s) for s in (1, 2)])
    figure = tool.draw({'v': tool.read_scalars(tmp_path / 'v')})
    assert 'did not clip' in figure.axes[1].texts[0].get_text()
    assert figure.axes[3].texts[0].get_text() == 'unknown'


@pytest.mark.parametrize('first_nan', [0, 2])
@pytest.mark.parametrize('clips', [False, True])
def test_a_lost_run_says_from_where_on(tool, tmp_path, capsys, first_nan, clips):
    data = rows(range(10, 60, 10))
    for row in data[first_nan:]:
        row |= dict(loss=math.nan, grad_norm=math.nan, **LEFT_OUT)
    if not clips:
        data = [dict(lr=0.1, loss=row['loss'], step=row['step']) for row in data]
    file = write(tmp_path / 'lost', data)
    write(tmp_path / 'recovers', [*data[: first_nan + 1], *rows([60])])
    scalars = {name: tool.read_scalars(tmp_path / name) for name in ('lost', 'recovers')}
    loss = tool.draw(scalars).axes[0]
    step = data[first_nan]['step']
    legend = [text.get_text() for text in loss.get_legend().get_texts()]
    assert legend == [f'lost: lost from iteration {step} on', 'recovers']
    assert lines(loss)[':', tool.COLORS[0]][0] == [step, step]
    assert tool.main([str(file), '--out', str(tmp_path / 'x.png')]) == 0
    assert f'lost from {step} on' in capsys.readouterr().out


def test_a_run_that_a_skipped_step_has_saved_is_not_lost(tool, tmp_path, capsys):
    """MMEngine's means are NaN for the whole of its window, here to the end of the log."""
    data = rows(range(5, 65, 5))
    for row in data[1:]:
        row |= dict(loss=math.nan, grad_norm=math.nan)
    data[4] |= LEFT_OUT
    file = write(tmp_path / 'saved', data)
    scalars = tool.read_scalars(file)
    assert scalars.lost_from() is None and scalars.nonfinite_steps() == [10, 25]
    # The last step of the log being one of them does not make it lost either.
    data[-1] |= LEFT_OUT
    assert tool.Scalars(data, []).lost_from() is None
    data[-2] |= LEFT_OUT
    assert tool.Scalars(data, []).lost_from() == 55
    assert tool.main([str(file), '--out', str(tmp_path / 'x.png')]) == 0
    out = capsys.readouterr().out
    assert '2 of them tells of a gradient' in out and 'lost' not in out
    assert '11 lines have no loss to draw' in out and 'window_size' in out


def test_a_run_that_only_skips_is_lost_although_its_loss_is_finite(tool):
    data = rows(range(5, 65, 5))
    for row in data[3:]:
        row |= dict(LEFT_OUT, grad_norm=math.inf)
    assert tool.Scalars(data, []).lost_from() == 20


def test_the_largest_of_a_window_says_nothing_of_the_step(tool):
    """``nonfinite`` as docs/telemetry.md has it logged, with one skipped step in each window."""
    data = rows(range(10, 60, 10))
    for row in data[2:]:
        row |= dict(nonfinite=1.0, loss=math.nan, grad_norm=math.nan)
    assert tool.Scalars(data, []).lost_from() is None
    assert tool.Scalars(data, []).nonfinite_steps() == [30, 40, 50]


def test_a_run_that_zeroes_its_gradients_and_learns_is_not_lost(tool):
    data = rows(range(10, 60, 10))
    for row in data:
        row |= dict(nonfinite=1.0, grad_norm=math.inf)
    assert tool.Scalars(data, []).lost_from() is None


def test_one_log_line_can_be_seen(tool, tmp_path):
    write(tmp_path / 'v', rows([10]))
    figure = tool.draw({'v': tool.read_scalars(tmp_path / 'v')})
    assert all(line.get_marker() == 'o' for line in figure.axes[0].lines)


def test_a_threshold_of_single_elements_is_no_norm(tool):
    data = rows(range(10, 60, 10))
    for row in data:
        row |= dict(clip_threshold=0.001)
    # It goes on without clipping.
    data += [dict(lr=0.1, loss=1.0, step=60)]
    norm = tool.draw({'value': tool.Scalars(data, [])}).axes[1]
    assert (':', tool.COLORS[0]) not in lines(norm)
    assert norm.get_title(loc='left').endswith('thresholds of value: 0.001')


def test_several_optimizers_of_a_run(tool, tmp_path, capsys):
    def renamed(name, factor):
        shared = ('step', 'iter', 'loss')
        return [
            {key if key in shared else f'{name}.{key}': value for key, value in row.items()}
            for row in rows(range(10, 60, 10), factor)
        ]

    merged = [a | b for a, b in zip(renamed('head', 1), renamed('backbone', 3), strict=True)]
    file = write(tmp_path / 'gan', merged)
    scalars = tool.read_scalars(file)
    assert scalars.members() == ['head', 'backbone']
    assert scalars.member('backbone').series('grad_norm')[1] == [3.0, 1.5, 1.0, 0.75, 0.6]
    for row in merged[2:]:
        row['loss'] = math.nan
    assert tool.Scalars(merged, []).lost_from() is None
    for row in merged[3:]:
        row |= {f'head.{key}': value for key, value in LEFT_OUT.items()}
    assert tool.Scalars(merged, []).lost_from() == 40
    assert tool.main([str(file), '--names', 'gan', '--out', str(tmp_path / 'x.png')]) == 0
    out = capsys.readouterr().out
    assert 'gan head: 5 log lines' in out and 'gan backbone: 5 log lines' in out


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [(['gone'], 'gone is not there'), (['.'], 'is it the work_dir of a run')],
)
def test_errors_in_one_line(tool, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert tool.main(arguments) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['a', 'b', '--names', 'x'], '1 names for 2 runs'),
        (['a', '--out', 'x.txt'], 'must end in .png'),
        (['a', '--smooth', '0'], 'at least 1'),
        ([], 'WORK_DIR'),
    ],
)
def test_arguments_that_make_no_sense(tool, capsys, arguments, message):
    with pytest.raises(SystemExit):
        tool.main(arguments)
    assert message in capsys.readouterr().err
