"""`make setup` on machines that lack something: one clear line, before anything is downloaded."""

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
# What the script may use of a bare system.
UTILITIES = ('sh', 'cat', 'cksum', 'dirname', 'mkdir', 'rm', 'sleep', 'tail', 'sed', 'tr', 'echo')

pytestmark = pytest.mark.skipif(MAKE is None, reason='needs make')


class Machine:
    """A checkout and a PATH on which there is only what a test puts there."""

    def __init__(self, folder: Path):
        self.checkout = folder / 'a checkout'  # a blank in the path is nothing special
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
        """The one line with which ``make`` stops; nothing has been built by then."""
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
def test_no_compiler(machine, target):
    machine.put_python()
    line = machine.refusal(target)
    assert line.startswith('setup: needs a C++ compiler')
    assert 'none of c++, g++, clang++ is on PATH' in line


def test_a_compiler_that_does_not_work(machine):
    machine.put_python()
    machine.put('g++', 'exit 1')
    assert "the C++ compiler 'g++' cannot build a C++17 program" in machine.refusal('setup')


def test_no_python(machine):
    line = machine.refusal('setup')
    assert line.startswith('setup: needs Python 3.10 to 3.13, and found none')


def test_python_of_another_version(machine):
    machine.put_old_python('python3', '3.9')
    machine.put_old_python('python', '2.7')
    line = machine.refusal('test')
    assert 'needs Python 3.10 to 3.13, and found python3 is 3.9, python is 2.7' in line


def test_the_python_that_was_asked_for(machine):
    machine.put_python()
    machine.put_old_python('python9', '9.0')
    assert 'found python9 is 9.0' in machine.refusal('setup', 'PYTHON=python9')
    assert 'found none at python8' in machine.refusal('setup', 'PYTHON=python8')


def test_a_newer_python_beside_an_old_one_is_taken(machine):
    machine.put_old_python('python3', '3.9')
    machine.put_python('python3.12')
    assert 'needs a C++ compiler' in machine.refusal('setup')


def test_unknown_family(machine):
    machine.put_python()
    assert "FAMILY is 'mmlab'; it can be mm" in machine.refusal('setup', 'FAMILY=mmlab')


def test_a_foreign_environment_is_left_alone(machine):
    machine.put_python()
    machine.put('g++', 'cat >/dev/null')
    mine = machine.checkout / '.venv' / 'mine'
    mine.parent.mkdir()
    mine.write_text('precious')
    assert '.venv is there already and was not made by this script' in machine.refusal('setup')
    assert mine.read_text() == 'precious'
    assert not (machine.checkout / '.venv.lock').exists()


def test_supported_pythons_are_those_of_the_package():
    declared = re.search(
        r'requires-python = ">=3\.(\d+),<3\.(\d+)"', (ROOT / 'pyproject.toml').read_text()
    )
    checked = re.search(
        r'\(3, (\d+)\) <= sys.version_info\[:2\] <= \(3, (\d+)\)',
        (ROOT / 'scripts' / 'setup.sh').read_text(),
    )
    low, high = map(int, declared.groups())
    assert tuple(map(int, checked.groups())) == (low, high - 1)


def test_help_is_the_default(machine):
    done = machine.make()
    assert done.returncode == 0
    for target in ('make train', 'make test', 'make setup', 'make lint'):
        assert target in done.stdout
