"""The figure shows what was logged."""

from __future__ import annotations

import json
import math

import pytest

from gclip_mm.analysis.pictures.clipping import COLORS, draw
from gclip_mm.analysis.pictures.modules import read_modules
from gclip_mm.analysis.run_files import Scalars, read_scalars
from gclip_mm.cli import plot as tool
from tests.analysis.run_logs import LEFT_OUT, clipped_rows, lines, write_scalars


@pytest.mark.parametrize('near', ['', '20240101_000100', '20240101_000100/vis_data/scalars.json'])
def test_run_by_folder_timestamp_or_file(killed_run, tmp_path, near, capsys):
    out = tmp_path / 'new' / 'x.png'
    assert tool.main([str(killed_run / near), '--out', str(out)]) == 0
    assert out.stat().st_size > 10_000
    text = capsys.readouterr().out
    assert '1 of them with a non-finite gradient' in text
    assert ('3 log lines' if near else '5 log lines') in text


@pytest.mark.parametrize('first_nan', [0, 2])
@pytest.mark.parametrize('clips', [False, True])
def test_lost_run_is_labelled_with_its_first_lost_step(tmp_path, capsys, first_nan, clips):
    data = clipped_rows(range(10, 60, 10))
    for row in data[first_nan:]:
        row |= dict(loss=math.nan, grad_norm=math.nan, **LEFT_OUT)
    if not clips:
        data = [dict(lr=0.1, loss=row['loss'], step=row['step']) for row in data]
    file = write_scalars(tmp_path / 'lost', data)
    write_scalars(tmp_path / 'recovers', [*data[: first_nan + 1], *clipped_rows([60])])
    scalars = {name: read_scalars(tmp_path / name) for name in ('lost', 'recovers')}
    loss = draw(scalars).axes[0]
    step = data[first_nan]['step']
    legend = [text.get_text() for text in loss.get_legend().get_texts()]
    assert legend == [f'lost: lost from iteration {step} on', 'recovers']
    assert lines(loss)[':', COLORS[0]][0] == [step, step]
    assert tool.main([str(file), '--out', str(tmp_path / 'x.png')]) == 0
    text = capsys.readouterr().out
    assert f'lost from {step} on' in text
    assert ('no gradient norm logged' in text) is not clips


def test_run_saved_by_a_skipped_step_is_not_lost(tmp_path, capsys):
    """MMEngine's means are NaN for the whole of its window, here to the end of the log."""
    data = clipped_rows(range(5, 65, 5))
    for row in data[1:]:
        row |= dict(loss=math.nan, grad_norm=math.nan)
    data[4] |= LEFT_OUT
    file = write_scalars(tmp_path / 'saved', data)
    scalars = read_scalars(file)
    assert scalars.lost_from() is None and scalars.nonfinite_steps() == [10, 25]
    # The last step of the log being one of them does not make it lost either.
    data[-1] |= LEFT_OUT
    assert Scalars(data, []).lost_from() is None
    data[-2] |= LEFT_OUT
    assert Scalars(data, []).lost_from() == 55
    assert tool.main([str(file), '--out', str(tmp_path / 'x.png')]) == 0
    out = capsys.readouterr().out
    assert '2 of them with a non-finite gradient' in out and 'lost' not in out
    assert '11 lines have no loss to draw' in out and 'window_size' in out


def test_several_optimizers_are_separate_lines(tmp_path, capsys):
    def renamed(name, factor):
        shared = ('step', 'iter', 'loss')
        return [
            {key if key in shared else f'{name}.{key}': value for key, value in row.items()}
            for row in clipped_rows(range(10, 60, 10), factor)
        ]

    merged = [a | b for a, b in zip(renamed('head', 1), renamed('backbone', 3), strict=True)]
    file = write_scalars(tmp_path / 'gan', merged)
    scalars = read_scalars(file)
    assert scalars.members() == ['head', 'backbone']
    assert scalars.member('backbone').series('grad_norm')[1] == [3.0, 1.5, 1.0, 0.75, 0.6]
    for row in merged[2:]:
        row['loss'] = math.nan
    assert Scalars(merged, []).lost_from() is None
    for row in merged[3:]:
        row |= {f'head.{key}': value for key, value in LEFT_OUT.items()}
    assert Scalars(merged, []).lost_from() == 40
    assert tool.main([str(file), '--names', 'gan', '--out', str(tmp_path / 'x.png')]) == 0
    out = capsys.readouterr().out
    assert 'gan head: 5 log lines' in out and 'gan backbone: 5 log lines' in out


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [(['gone'], 'gone is not there'), (['.'], 'is it the work_dir of a run')],
)
def test_errors_are_one_line(tmp_path, monkeypatch, capsys, arguments, message):
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
def test_invalid_arguments_are_rejected(capsys, arguments, message):
    with pytest.raises(SystemExit):
        tool.main(arguments)
    assert message in capsys.readouterr().err


def test_modules_of_a_resumed_run(tmp_path, capsys):
    for k, steps in enumerate(((10, 20, 30), (30, 40))):
        folder = tmp_path / f'2024010{k}' / 'vis_data'
        write_scalars(folder, clipped_rows(steps))
        for name in ('module_scalars.json', 'clipped_units.json'):
            rows = []
            for step in steps:
                share = {'module_clip_fraction.neck': k / 2, 'module_clip_fraction.head': 1.0}
                units = [['head.weight', 3, 0.25], ['neck.weight', 1, 0.5]][: 2 - k]
                row = dict(share) if name.startswith('module') else dict(units=units)
                rows.append(json.dumps({**row, 'step': step}))
            (folder / name).write_text('\n'.join(rows))
    log = read_modules(tmp_path)
    assert log.steps == [10, 20, 30, 40] and log.modules == ['neck', 'head']
    assert log.shares.tolist() == [[0, 0, 0.5, 0.5], [1, 1, 1, 1]]
    assert log.ranked == [('head.weight[3]', 0.25, 4), ('neck.weight[1]', 0.5, 2)]
    out = tmp_path / 'x.png'
    assert tool.main([str(tmp_path), '--modules', '--out', str(out)]) == 0
    assert 'head.weight[3]: kept 0.25 (median) in 4 steps' in capsys.readouterr().out
    assert out.stat().st_size > 10_000


def test_modules_of_a_run_without_a_monitor(killed_run, tmp_path, capsys):
    assert tool.main([str(killed_run), '--modules', '--out', str(tmp_path / 'x.png')]) == 1
    assert "custom_hooks=[dict(type='GClipMonitorHook')]" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        tool.main([str(killed_run), str(killed_run), '--modules'])
