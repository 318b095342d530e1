"""scripts/cxx.sh, with which the set-up compiles MMCV, and a real compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def is_gcc() -> bool:
    if shutil.which('g++') is None:
        return False
    done = subprocess.run(['g++', '-v'], capture_output=True, text=True, check=False)
    return 'gcc version' in done.stderr


pytestmark = pytest.mark.skipif(not is_gcc(), reason='needs GCC')


class Build:
    """A folder with a header that stands for PyTorch's, and two files that include it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.header = folder / 'include' / 'torch' / 'types.h'
        self.header.parent.mkdir(parents=True)
        self.write_header(42)
        for name in ('one', 'two'):
            text = f'#include <torch/types.h>\nint {name}() {{ return ANSWER; }}\n'
            (folder / f'{name}.cpp').write_text(text)
        self.env = {
            **os.environ,
            'GCLIP_CXX': 'g++',
            'GCLIP_CXX_FLAGS': '-g0',
            'GCLIP_CXX_DIR': str(folder / 'cxx'),
            'GCLIP_CXX_MISSED': 'yes',  # without ccache
        }
        self.script = folder / 'cxx' / 'g++'
        self.script.parent.mkdir()
        shutil.copy(ROOT / 'scripts' / 'cxx.sh', self.script)
        self.script.chmod(0o755)

    def write_header(self, answer: int) -> None:
        # Not `#pragma once`, by which GCC tells that a header has changed.
        guarded = f'#ifndef TYPES\n#define TYPES\n#define ANSWER {answer}\n#endif\n'
        self.header.write_text(guarded)

    def compile(self, name: str, *flags: str) -> str:
        """Compile as torch's build does; return what the function of the file returns."""
        command = [str(self.script), '-MMD', '-MF', f'{name}.o.d', '-g0', '-O1', '-fPIC']
        command += ['-Iinclude', *flags, '-c', f'{name}.cpp', '-o', f'{name}.o', '-std=c++17']
        self.run(*command)
        main = f'#include <cstdio>\nint {name}(); int main() {{ std::printf("%d", {name}()); }}\n'
        (self.folder / 'main.cc').write_text(main)
        self.run('g++', 'main.cc', f'{name}.o', '-o', 'main')
        return self.run('./main')

    def run(self, *command: str) -> str:
        done = subprocess.run(
            command, cwd=self.folder, env=self.env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def build(tmp_path) -> Build:
    return Build(tmp_path)


def test_headers_are_read_once(build):
    assert build.compile('one') == '42'
    build.write_header(43)  # not read a second time
    assert build.compile('two') == '42'


def test_headers_are_read_again_for_other_flags(build):
    """A precompiled header that does not fit is left out, so the object is the ordinary one."""
    assert build.compile('one') == '42'
    build.write_header(43)
    assert build.compile('two', '-fno-exceptions') == '43'


def test_file_compiles_although_the_headers_do_not(build):
    text = 'int one() { return 7; }\n'
    (build.folder / 'one.cpp').write_text(text)
    build.header.write_text('#error "does not compile"\n')
    assert build.compile('one') == '7'


def test_errors_of_the_compiler_are_passed_on(build):
    (build.folder / 'one.cpp').write_text('int one() { return; }\n')
    command = [str(build.script), '-Iinclude', '-c', 'one.cpp', '-o', 'one.o']
    done = subprocess.run(command, cwd=build.folder, env=build.env, capture_output=True, text=True)
    assert done.returncode != 0
    assert 'one.cpp' in done.stderr


def test_other_calls_reach_the_compiler_unchanged(build):
    assert build.run(str(build.script), '-dumpversion') == build.run('g++', '-dumpversion')
    assert 'return 42' in build.run(str(build.script), '-Iinclude', '-E', 'one.cpp')
    assert not (build.folder / 'cxx' / 'started').exists()


@pytest.mark.skipif(shutil.which('ccache') is None, reason='needs ccache')
def test_second_build_is_answered_by_ccache(tmp_path):
    statistics = []
    for name in ('first', 'second'):
        build = Build(tmp_path / name / 'pip-build')
        del build.env['GCLIP_CXX_MISSED']
        build.env |= {
            'CCACHE_DIR': str(tmp_path / 'cache'),
            'CCACHE_BASEDIR': str(tmp_path),
            'CCACHE_NOHASHDIR': '1',
            'CCACHE_COMPILERCHECK': '%compiler% -v',
        }
        assert build.compile('one') == '42'
        statistics.append(build.run('ccache', '--print-stats'))
        # What the cache answers needs no compiled headers.
        assert (build.folder / 'cxx' / 'headers.h.gch').exists() == (name == 'first')
    hits = [
        sum(int(line.split()[1]) for line in text.splitlines() if 'cache_hit' in line)
        for text in statistics
    ]
    assert hits == [0, 1]
