"""The command ``gclip``: help, errors, exit codes, the scripts in tools/, and an installed copy."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import gclip_mm
from gclip_mm import cli
from gclip_mm.cli import COMMANDS, convert
from gclip_mm.cli.arguments import only_json
from gclip_mm.clipping import CLIPPERS

from .conftest import ROOT, TOY

#: Every command line without its arguments, such as ``convert psg``.
ALL = [[name] for name in COMMANDS] + [['convert', name] for name in convert.CONVERTERS]
SCRIPTS = sorted(path for path in (ROOT / 'tools').rglob('*.py') if path.parent.name != 'dev')


def run(*arguments, cwd=None, **environment):
    """Run ``python ...`` in a new process."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, 'OMP_NUM_THREADS': '1', **environment},
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.mark.parametrize('command', ALL, ids=' '.join)
def test_help_exits_with_0_and_shows_an_example_and_the_exit_codes(command, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main([*command, '--help'])
    text = capsys.readouterr().out
    assert caught.value.code == 0
    name = ' '.join(['gclip', *command])
    assert text.startswith(f'usage: {name}')
    assert 'example' in text and f'\n  {name}' in text
    assert cli.EXIT_CODES in text


@pytest.mark.parametrize('command', ALL, ids=' '.join)
def test_an_unknown_flag_exits_with_2(command, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main([*command, '--no-such-flag'])
    assert caught.value.code == 2
    assert ' '.join(['gclip', *command]) in capsys.readouterr().err


def test_a_config_imports_rules_from_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, 'path', [*sys.path, str(TOY)])
    monkeypatch.setattr(CLIPPERS, '_classes', dict(CLIPPERS._classes))
    monkeypatch.chdir(tmp_path)
    Path('rules_of_ones_own.py').write_text(
        'from gclip_mm.clipping import CLIPPERS, NormClip\n\n\n'
        '@CLIPPERS.register_module()\nclass MineClip(NormClip):\n    pass\n'
    )
    Path('mine.py').write_text(
        f'_base_ = {str(TOY / "toy.py")!r}\n'
        "custom_imports = dict(imports=['gclip_mm', 'gclip_toy_task', 'rules_of_ones_own'])\n"
        "optim_wrapper = dict(clip_grad=dict(type='MineClip'))\n"
    )
    name = f'experiment_name={tmp_path.name}'
    assert cli.main(['train', 'mine.py', '--work-dir', 'out', '--cfg-options', name]) == 0
    assert Path('out/iter_12.pth').is_file()


def test_an_unknown_command_exits_with_2_and_names_the_valid_ones(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(['trian'])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert "unknown command 'trian'; did you mean 'train'?" in error
    assert all(name in error for name in COMMANDS) and error.count('\n') == 1


def test_an_unknown_converter_exits_with_2_and_names_the_valid_ones(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(['convert', 'coco'])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert all(name in error for name in convert.CONVERTERS)


@pytest.mark.parametrize('arguments', [[], ['convert']])
def test_no_command_exits_with_2_and_shows_the_list(arguments, capsys):
    assert cli.main(arguments) == 2
    names = convert.CONVERTERS if arguments else COMMANDS
    error = capsys.readouterr().err
    assert all(f'  {name} ' in error for name in names) and cli.EXIT_CODES in error


def test_version_is_printed(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(['--version'])
    assert caught.value.code == 0
    assert gclip_mm.__version__ in capsys.readouterr().out


def test_help_is_printed_by_python_m():
    done = run('-m', 'gclip_mm.cli', '--help', cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert all(f'  {name} ' in done.stdout for name in COMMANDS)


def test_importing_the_command_loads_no_sub_command():
    code = (
        'import sys; import gclip_mm; before = set(sys.modules); import gclip_mm.cli\n'
        'print(sorted(m for m in set(sys.modules) - before if m.startswith("gclip_mm")))\n'
        'print("matplotlib.pyplot" in set(sys.modules) - before)'
    )
    done = run('-c', code, cwd=ROOT)
    assert done.stdout.split('\n')[:2] == ["['gclip_mm.cli']", 'False'], done.stderr


# -- Without MMDetection ---------------------------------------------------------------------------


def without_mmdet(*arguments, cwd):
    """Run ``gclip`` in a process in which MMDetection cannot be imported."""
    code = (
        "import sys; sys.modules['mmdet'] = None\n"
        'from gclip_mm.cli import main; sys.exit(main(sys.argv[1:]))'
    )
    path = os.pathsep.join([str(ROOT), str(TOY)])
    return run('-c', code, *arguments, cwd=cwd, PYTHONPATH=path)


def test_commands_on_an_mmengine_config_do_not_need_mmdet(tmp_path):
    config = TOY / 'toy.py'
    done = without_mmdet('train', config, '--work-dir', 'run', '--clip', 'norm', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / 'run' / 'iter_12.pth').is_file()
    done = without_mmdet('plot', 'run', '--out', 'x.png', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / 'x.png').is_file() and 'Saved x.png' in done.stdout
    done = without_mmdet('routes', config, '--json', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    routes = json.loads(done.stdout)['routes']
    assert [row['name'] for row in routes] == [
        'net.0.weight',
        'net.0.bias',
        'net.2.weight',
        'net.2.bias',
    ]
    sgd = ['optim_wrapper.optimizer.type=SGD', 'optim_wrapper.optimizer.lr=0.02']
    done = without_mmdet(
        *('advise', config, '--iterations', 10, '--out', 'advice', '--json', '--cfg-options', *sgd),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    advice = json.loads(done.stdout)
    assert advice == json.loads((tmp_path / 'advice/advice.json').read_text()) | {
        'out': 'advice',
        'files': ['auto.py', 'value.py', 'norm.py', 'agc.py', 'zclip.py', 'advice.json',
                  'distributions.png', 'stats.npz'],
    }  # fmt: skip


@pytest.mark.parametrize('command', [['plot'], ['report'], ['compare'], ['benchmark'], ['cost']])
def test_help_does_not_need_mmdet(command, tmp_path):
    done = without_mmdet(*command, '--help', cwd=tmp_path)
    assert done.returncode == 0, done.stderr


# -- The scripts in tools/ -------------------------------------------------------------------------


@pytest.mark.parametrize('name', ['train.py', 'analysis/plot_clipping.py'])
def test_a_script_runs_from_anywhere_without_an_installed_package(name, tmp_path):
    script = ROOT / 'tools' / name
    done = run(script, '--help', cwd=tmp_path, PYTHONPATH='')
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f'usage: {script.name}')


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda path: path.stem)
def test_a_script_is_a_thin_door_to_a_command(script):
    text = script.read_text()
    assert len(text.splitlines()) <= 12
    (module,) = re.findall(r"import_module\('([\w.]+)'\)\.main\(prog=", text)
    assert importlib.util.find_spec(module) is not None
    (parents,) = re.findall(r'\.parents\[(\d)\]', text)
    assert script.parents[int(parents)] == ROOT


def test_a_script_names_itself_in_errors(tmp_path):
    done = run(ROOT / 'tools' / 'train.py', 'no.py', cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith('train.py: error: config ')


# -- Installed -------------------------------------------------------------------------------------


def test_an_installed_package_works_from_another_directory(tmp_path):
    """A copy of the package with its entry point, as pip writes them."""
    site = tmp_path / 'site'
    ignore = shutil.ignore_patterns('__pycache__')
    shutil.copytree(ROOT / 'gclip_mm', site / 'gclip_mm', ignore=ignore)
    shutil.copytree(ROOT / 'configs', site / 'gclip_mm' / '.mim' / 'configs', ignore=ignore)
    script = tmp_path / 'gclip'
    script.write_text('import sys\nfrom gclip_mm.cli import main\nsys.exit(main())\n')
    (tmp_path / 'elsewhere').mkdir()
    done = run(
        script,
        *('routes', 'gclip_mm::digits/small-cnn_value_digits.py', '--clip', 'agc', '--summary'),
        cwd=tmp_path / 'elsewhere',
        PYTHONPATH=str(site),
    )
    assert done.returncode == 0, done.stderr
    assert 'AGC' in done.stdout


def test_the_entry_point_is_declared():
    text = (ROOT / 'pyproject.toml').read_text()
    assert '[project.scripts]\ngclip = "gclip_mm.cli:main"\n' in text


# -- JSON ------------------------------------------------------------------------------------------


def test_json_is_strict_and_alone_on_stdout(capsys):
    with only_json(True) as result:
        print('progress')
        result.update(path=Path('a'), values=(1.0, float('nan'), float('inf')), nested={1: None})
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {
        'path': 'a',
        'values': [1.0, 'nan', 'inf'],
        'nested': {'1': None},
    }
    assert captured.err == 'progress\n'


def test_without_json_output_stays_on_stdout(capsys):
    with only_json(False) as result:
        print('text')
        result['x'] = 1
    assert capsys.readouterr().out == 'text\n'
