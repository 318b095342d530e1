"""The stability sweep on a toy: a grid with a fatal rate, resumed, changed and reported."""

from __future__ import annotations

import csv
import json
import os
import shlex
import subprocess
import sys

import pytest

from gclip_mm.analysis.sweep import read_rule
from gclip_mm.cli import sweep as tool
from gclip_mm.cli import train as train_command

from .conftest import ROOT, TOY

TOOL = ROOT / 'tools' / 'analysis' / 'stability_sweep.py'


#: At 50 the toy is lost without clipping; a step of at most 0.01 * 50 it survives.
GRID = ['--lr', '0.02', '50', '--clip', 'none', 'norm', 'tight:type=ParamNormClip,max_norm=0.01']


GRID += ['--seeds', '0', '--patience', '3', '--metric', 'toy/score']


OPTIONS = ['--cfg-options', 'optim_wrapper.optimizer.type=SGD', 'train_cfg.max_iters=80']


def sweep(out, *arguments, options=OPTIONS):
    env = {**os.environ, 'PYTHONPATH': str(TOY), 'OMP_NUM_THREADS': '1'}
    command = [sys.executable, str(TOOL), str(TOY / 'toy_validated.py'), '--out', str(out)]
    return subprocess.run(
        [*command, *arguments, *options], capture_output=True, text=True, env=env, timeout=240
    )


def rows(out):
    found = csv.DictReader((out / 'sweep.csv').open())
    return {(r['rule'], r['lr']): r for r in found}


@pytest.fixture(scope='module')
def swept(tmp_path_factory):
    out = tmp_path_factory.mktemp('sweep') / 'out'
    done = sweep(out, *GRID, '--jobs', '2')
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_grid_is_trained_and_summarised(swept):
    out, printed = swept
    found = rows(out)
    assert len(found) == 6
    assert found['none', '0.02']['status'] == 'trained'
    assert float(found['none', '0.02']['metric']) > 0
    lost = found['none', '50']
    assert lost['status'] == 'diverged' and lost['metric'] == ''
    assert int(lost['nonfinite_from']) <= int(lost['iterations']) < 80
    assert found['tight', '50']['status'] == 'trained'
    assert json.loads(found['tight', '50']['clip_grad'])['max_norm'] == 0.01
    assert found['tight', '50']['tuned'] == 'recipe', 'the advisor does not know this rule'
    assert found['norm', '50']['tuned'] == 'max_norm from the advisor'
    assert '[6/6]' in printed and '(1/1 diverged)' in printed
    assert (out / 'sweep.png').stat().st_size > 10_000
    assert 'none' in (out / 'sweep.md').read_text()
    assert not list((out / 'cells').rglob('*.pth')), 'checkpoints of what has ended are gone'


def test_advice_differs_between_rates(swept):
    found = rows(swept[0])
    slow, fast = (json.loads(found['norm', lr]['clip_grad'])['max_norm'] for lr in ('0.02', '50'))
    assert fast < slow


def test_inline_numbers_are_not_tuned():
    assert read_rule('norm', True)[2] and not read_rule('norm', False)[2]
    assert read_rule('mine:norm', True)[::2] == ('mine', True)
    label, clip_grad, advised = read_rule('mine:type=NormClip,max_norm=2.0', True)
    assert (label, clip_grad['max_norm'], advised) == ('mine', 2.0, False)
    assert not read_rule('adagc', True)[2]


def test_wider_grid_trains_only_new_cells(swept):
    out, _ = swept
    before = {p: p.stat().st_mtime_ns for p in out.rglob('outcome.json')}
    wider = list(GRID)
    wider[wider.index('0.02')] = '0.01'
    done = sweep(out, *wider)
    assert '6 trainings, 3 of them done' in done.stdout, done.stderr
    assert len(rows(out)) == 6 and len(list(out.rglob('outcome.json'))) == 9
    assert all(p.stat().st_mtime_ns == t for p, t in before.items())


@pytest.fixture
def report(monkeypatch):
    monkeypatch.syspath_prepend(str(TOY))
    # The sweep extends it for its child processes.
    monkeypatch.setenv('PYTHONPATH', '')
    return lambda out, *args: tool.main([str(TOY / 'toy_validated.py'), '--out', str(out), *args])


def test_report_trains_nothing(swept, report, capsys):
    out, _ = swept
    assert report(out, *GRID, '--report', *OPTIONS) == 0
    assert '6 trainings, 6 of them done' in capsys.readouterr().out and len(rows(out)) == 6


def test_results_of_other_settings_are_ignored(swept, report, capsys):
    changed = [*OPTIONS, 'train_dataloader.batch_size=2']
    assert report(swept[0], *GRID, '--report', *changed) == 1
    assert 'nothing has been trained' in capsys.readouterr().err


def test_unknown_metric_keeps_the_results(swept, report, capsys):
    assert report(swept[0], *GRID[:-1], 'bbox_mAP', *OPTIONS) == 1
    assert 'toy/score' in capsys.readouterr().err
    assert len(list(swept[0].rglob('outcome.json'))) >= 6


def test_command_of_a_row_reproduces_the_training(swept, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(TOY))
    row = rows(swept[0])['tight', '50']
    python, tool, *arguments = shlex.split(row['command'])
    assert (python, tool) == ('python', 'tools/train.py')
    train_command.main([*arguments, f'experiment_name={tmp_path.name}', f'work_dir={tmp_path}'])
    scalars = next(tmp_path.rglob('scalars.json')).read_text().splitlines()
    scores = [json.loads(line)['toy/score'] for line in scalars if 'toy/score' in line]
    assert scores[-1] == pytest.approx(float(row['metric']), abs=1e-4)


@pytest.mark.parametrize(
    ('arguments', 'word'),
    [
        (['--lr', '0', '--clip', 'none'], '--lr must be above 0'),
        (['--lr', '1', '1', '--clip', 'none'], 'names something twice'),
        (['--lr', '1', '--clip', 'none', '--jobs', '0'], '--jobs must be at least 1'),
        (['--lr', '1', '--clip', 'none', '--enough', '2'], '--enough'),
        (['--lr', '1', '--clip', 'nrom'], 'norm'),
        (['--lr', '1', '--clip', 'type=NormClip,max_nrom=1'], 'max_norm'),
    ],
)
def test_mistakes_are_errors_before_any_training(arguments, word, tmp_path, capsys, report):
    try:
        assert report(tmp_path / 'x', *arguments) == 1
    except SystemExit as stop:
        assert stop.code == 2
    assert word in capsys.readouterr().err
    assert not list(tmp_path.rglob('outcome.json'))
