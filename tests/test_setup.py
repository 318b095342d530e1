"""`make setup` on incomplete machines: one clear error line before anything is downloaded."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAKE = shutil.which('make')
# The system utilities that the script may use.
UTILITIES = (
    'sh',
    'cat',
    'cksum',
    'dirname',
    'mkdir',
    'rm',
    'sleep',
    'tail',
    'sed',
    'tr',
    'echo',
    'cp',
)

pytestmark = pytest.mark.skipif(MAKE is None, reason='needs make')


class Machine:
    """A checkout and a PATH that contains only the programs that a test puts there."""

    def __init__(self, folder: Path):
        self.checkout = folder / 'a checkout'  # paths with a blank must work
        self.bin = folder / 'bin'
        self.checkout.mkdir()
        self.bin.mkdir()
        for name in ('Makefile', 'pyproject.toml', 'scripts', 'requirements'):
            source = ROOT / name
            (shutil.copytree if source.is_dir() else shutil.copy)(source, self.checkout / name)
        for name in UTILITIES:
            (self.bin / name).symlink_to(shutil.which(name))

    def put(self, name: str, text: str) -> None:
        path = self.bin / name
        path.write_text(f'#!/bin/sh\n{text}\n')
        path.chmod(0o755)

    def put_python(self, name: str = 'python3') -> None:
        self.put(name, f'exec "{os.path.realpath(sys.executable)}" "$@"')

    def put_old_python(self, name: str, version: str) -> None:
        self.put(name, f'case "$2" in *print*) echo {version} ;; *) exit 1 ;; esac')

    def make(self, *arguments: str) -> subprocess.CompletedProcess:
        keep = {k: v for k, v in os.environ.items() if k in ('HOME', 'TMPDIR', 'LANG')}
        return subprocess.run(
            [MAKE, *arguments],
            cwd=self.checkout,
            env={**keep, 'PATH': str(self.bin)},
            capture_output=True,
            text=True,
            timeout=60,
        )

    def refusal(self, *arguments: str) -> str:
        """Return the error line with which ``make`` stops; check that nothing was built."""
        done = self.make(*arguments)
        assert done.returncode != 0
        assert done.stdout == ''
        assert not list(self.checkout.glob('.venv*/bin'))
        line, *rest = done.stderr.splitlines()
        assert all(re.match(r'.*make(\[\d+\])?: \*\*\*', other) for other in rest), done.stderr
        return line


@pytest.fixture
def machine(tmp_path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.parametrize('target', ['setup', 'train', 'test', 'lint'])
def test_missing_compiler_stops_setup(machine, target):
    machine.put_python()
    line = machine.refusal(target)
    assert line.startswith('setup: needs a C++ compiler')
    assert 'none of c++, g++, clang++ is on PATH' in line


def test_broken_compiler_stops_setup(machine):
    machine.put_python()
    machine.put('g++', 'exit 1')
    assert "the C++ compiler 'g++' cannot build a C++17 program" in machine.refusal('setup')


def test_missing_python_stops_setup(machine):
    line = machine.refusal('setup')
    assert line.startswith('setup: needs Python 3.10 to 3.13, and found none')


def test_unsupported_python_stops_setup_and_is_named(machine):
    machine.put_old_python('python3', '3.9')
    machine.put_old_python('python', '2.7')
    line = machine.refusal('test')
    assert 'needs Python 3.10 to 3.13, and found python3 is 3.9, python is 2.7' in line


def test_requested_python_is_checked(machine):
    machine.put_python()
    machine.put_old_python('python9', '9.0')
    assert 'found python9 is 9.0' in machine.refusal('setup', 'PYTHON=python9')
    assert 'found none at python8' in machine.refusal('setup', 'PYTHON=python8')


def test_supported_python_is_chosen_over_an_old_one(machine):
    machine.put_old_python('python3', '3.9')
    machine.put_python('python3.12')
    assert 'needs a C++ compiler' in machine.refusal('setup')


def test_unknown_family_stops_setup(machine):
    machine.put_python()
    assert "FAMILY is 'mmlab'; it can be mm" in machine.refusal('setup', 'FAMILY=mmlab')


def test_environment_made_by_the_user_is_not_touched(machine):
    machine.put_python()
    machine.put('g++', 'cat >/dev/null')
    mine = machine.checkout / '.venv' / 'mine'
    mine.parent.mkdir()
    mine.write_text('precious')
    assert '.venv already exists and was not made by this script' in machine.refusal('setup')
    assert mine.read_text() == 'precious'
    assert not (machine.checkout / '.venv.lock').exists()


# -- Steps, with a Python that only records its calls ---------------------------------------------

RECORDING_PYTHON = r"""
case "$*" in
*"from mmcv.ops"*) [ ! -e broken_wheel ] ;;
*CUDA_HOME*) [ -e gpu_without_toolkit ] ;;
*print*version_info*) echo 3.11 ;;
*print*executable*) echo python3 ;;
"-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
*"cache remove"*) rm -f broken_wheel; echo "cache remove" >>calls ;;
*" install "*)
    echo "$*" >>calls
    if [ -e kill_at ]; then
        case "$*" in *"$(cat kill_at)"*) rm kill_at; kill -9 "$PPID" ;; esac
    fi
    ;;
esac
"""
STEPS = ('pip setuptools', 'torch', 'common.txt', 'mmengine', 'mmcv', '-e .')


@pytest.fixture
def recording(machine) -> Machine:
    machine.put('python3', RECORDING_PYTHON)
    machine.put('g++', 'cat >/dev/null')
    return machine


def calls(machine: Machine) -> list[str]:
    """Return the recorded pip calls since the last call of this function."""
    path = machine.checkout / 'calls'
    text = path.read_text() if path.exists() else ''
    path.unlink(missing_ok=True)
    return text.splitlines()


def test_steps_run_once_and_repeat_when_a_pin_changes(recording):
    assert recording.make('setup').returncode == 0
    first = calls(recording)
    assert len(first) == len(STEPS)
    for call, expected in zip(first, STEPS, strict=True):
        assert expected in call
        assert '-c requirements/constraints.txt' in call
        assert '--force-reinstall' not in call
    again = recording.make('setup')
    assert (again.returncode, again.stdout, calls(recording)) == (0, '', [])
    with (recording.checkout / 'requirements' / 'constraints.txt').open('a') as file:
        file.write('# changed\n')
    assert recording.make('setup').returncode == 0
    assert calls(recording) == first


@pytest.mark.parametrize('step', ['torch', 'mmcv', '-e .'])
def test_killed_setup_resumes_at_the_interrupted_step(recording, step):
    (recording.checkout / 'kill_at').write_text(step)
    assert recording.make('setup').returncode != 0
    done = calls(recording)
    assert step in done[-1]
    second = recording.make('setup')
    assert second.returncode == 0, second.stderr
    resumed = calls(recording)
    assert len(done) + len(resumed) == len(STEPS) + 1
    assert step in resumed[0]
    assert ['--force-reinstall' in call for call in resumed] == [True] + [False] * (
        len(resumed) - 1
    )
    assert not (recording.checkout / '.venv.lock').exists()


def test_wheel_built_for_another_torch_is_rebuilt(recording):
    (recording.checkout / 'broken_wheel').touch()
    done = recording.make('setup')
    assert done.returncode == 0, done.stderr
    assert 'built for another PyTorch' in done.stdout
    after = calls(recording)[4:]
    assert [('mmcv' in after[0]), after[1]] == [True, 'cache remove']
    assert 'mmcv' in after[2]
    assert '--force-reinstall' in after[2]


def test_moved_checkout_rebuilds_its_environment(recording):
    assert recording.make('setup').returncode == 0
    calls(recording)
    recording.checkout = recording.checkout.rename(recording.checkout.with_name('moved'))
    done = recording.make('setup')
    assert done.returncode == 0, done.stderr
    assert 'rebuilding it' in done.stdout
    assert len(calls(recording)) == len(STEPS)


def test_each_family_has_its_own_environment(recording):
    assert recording.make('setup').returncode == 0
    calls(recording)
    assert recording.make('setup', 'FAMILY=onedl').returncode == 0
    asked = ' '.join(calls(recording))
    assert 'onedl-mmengine onedl-mmdetection' in asked
    assert (recording.checkout / '.venv' / 'bin').is_dir()
    assert (recording.checkout / '.venv-onedl' / 'bin').is_dir()
    listed = recording.make('-n', 'test', 'FAMILY=onedl').stdout
    assert '.venv-onedl/bin/python -m pytest' in listed


def test_gpu_without_cuda_toolkit_uses_the_cpu(recording):
    env = recording.checkout / '.venv' / '.setup' / 'env'
    assert recording.make('setup').returncode == 0
    assert env.read_text() == ''
    shutil.rmtree(recording.checkout / '.venv')
    (recording.checkout / 'gpu_without_toolkit').touch()
    done = recording.make('setup')
    assert 'no CUDA toolkit' in done.stdout
    assert env.read_text() == 'CUDA_VISIBLE_DEVICES=-1\n'


def test_setup_script_of_mmcv_reads_its_version():
    """It takes from ``locals()`` what ``exec`` has set; Python 3.13 needs our help for that."""
    code = (
        'def get_version():\n'
        '    exec(compile("__version__ = \'2.1.0\'", "version.py", "exec"))\n'
        '    return locals()["__version__"]\n'
        'exec("x = 1", space := {})\n'
        'print(get_version(), space["x"])'
    )
    env = {**os.environ, 'PYTHONPATH': str(ROOT / 'scripts' / 'python313')}
    done = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True)
    assert done.stdout == '2.1.0 1\n', done.stderr


@pytest.mark.parametrize(
    ('cxx', 'folder', 'stands_in'),
    [('clang++', 'build', False), ('g++', 'a build', False), ('g++', 'build', True)],
)
def test_cxx_script_stands_in_for_gcc_alone(machine, tmp_path, cxx, folder, stands_in):
    """And in a folder without blanks; elsewhere the build uses the compiler that was found."""
    machine.put('clang++', 'echo clang version 19 >&2')
    machine.put('g++', 'echo gcc version 12 >&2')
    machine.put_python()
    script = '. scripts/compiler.sh; fast_compiler "$1" python3; echo "$CXX, ${GCLIP_CXX-}"'
    done = subprocess.run(
        ['sh', '-euc', script, 'sh', str(tmp_path / folder)],
        cwd=machine.checkout,
        env={'PATH': str(machine.bin), 'CXX': cxx},
        capture_output=True,
        text=True,
    )
    expected = f'{tmp_path}/{folder}/g++, {cxx}' if stands_in else f'{cxx}, '
    assert done.stdout.strip('\n') == expected, done.stderr
    assert (tmp_path / folder / 'g++').exists() == stands_in


# -- Agreement with other files -------------------------------------------------------------------


def test_supported_pythons_match_the_package_metadata():
    declared = re.search(
        r'requires-python = ">=3\.(\d+),<3\.(\d+)"', (ROOT / 'pyproject.toml').read_text()
    )
    checked = re.search(
        r'\(3, (\d+)\) <= sys.version_info\[:2\] <= \(3, (\d+)\)',
        (ROOT / 'scripts' / 'setup.sh').read_text(),
    )
    low, high = map(int, declared.groups())
    assert tuple(map(int, checked.groups())) == (low, high - 1)


def test_make_without_a_target_prints_help(machine):
    done = machine.make()
    assert done.returncode == 0
    for target in ('make train', 'make test', 'make setup', 'make lint'):
        assert target in done.stdout
