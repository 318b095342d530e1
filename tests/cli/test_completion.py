"""Completion: each command has a parser of its own, and a shell completes from the script."""

from __future__ import annotations

import shutil
import subprocess
from importlib import import_module

import pytest

from gclip_mm.cli import COMMANDS, completion
from gclip_mm.cli.convert import CONVERTERS

MODULES = {
    f'gclip {name}': f'gclip_mm.cli.{name.replace("-", "_")}'
    for name in COMMANDS
    if name != 'convert'
}
MODULES |= {f'gclip convert {name}': f'gclip_mm.cli.convert.{name}' for name in CONVERTERS}

#: Calls the completion function as bash does when Tab is pressed behind the last word.
PRESS_TAB = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
_shtab_gclip
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.mark.parametrize('name', MODULES)
def test_a_command_offers_its_parser(name):
    assert import_module(MODULES[name]).build_parser().prog == name


@pytest.fixture(scope='module')
def bash_script(tmp_path_factory):
    pytest.importorskip('shtab')
    if shutil.which('bash') is None:
        pytest.skip('needs bash')
    import shtab

    path = tmp_path_factory.mktemp('completion') / 'gclip.bash'
    path.write_text(shtab.complete(completion.whole_parser(), 'bash'))
    return path


@pytest.mark.parametrize(
    ('words', 'expected'),
    [
        (['tr'], ['train']),
        (['train', '--cl'], ['--clip']),
        (['train', 'mine.py', '--clip', 'au'], ['auto', 'autoclip']),
        (['convert', ''], list(CONVERTERS)),
        (['spikes', 'mine.py', 'mi'], ['mine.py']),
        (['completion', ''], list(completion.SHELLS)),
    ],
    ids=str,
)
def test_bash_completes(bash_script, words, expected, tmp_path):
    (tmp_path / 'mine.py').touch()
    done = subprocess.run(
        ['bash', '-c', PRESS_TAB, 'bash', bash_script, 'gclip', *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == expected


@pytest.mark.parametrize('shell', completion.SHELLS)
def test_a_script_is_printed_for_every_shell(shell, capsys):
    pytest.importorskip('shtab')
    assert completion.main([shell]) == 0
    script = capsys.readouterr().out
    assert all(name in script for name in [*COMMANDS, *CONVERTERS])
