"""``gclip completion``: print the script with which a shell completes the command."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path

from ..engine.apply_clip import RECIPES
from . import COMMANDS
from .arguments import new_parser
from .convert import CONVERTERS

DESCRIPTION = """\
Print the script with which a shell completes sub-commands, flags, recipes and file names.

The script is static: it imports nothing when Tab is pressed. Print it again after an upgrade.
Needs the package shtab (pip install gclip-mm[completion])."""
SHELLS = ('bash', 'zsh', 'fish', 'tcsh')
#: Arguments that take a path and do not declare the type ``Path``.
_PATHS = ('checkpoint', 'config', 'resume', 'work_dir')


def build_parser(prog: str = 'gclip completion') -> argparse.ArgumentParser:
    """The parser."""
    parser = new_parser(
        prog,
        DESCRIPTION,
        'gclip completion bash > ~/.local/share/bash-completion/completions/gclip',
        'gclip completion zsh > ~/.zfunc/_gclip    # a folder of $fpath',
        'gclip completion fish > ~/.config/fish/completions/gclip.fish',
    )
    parser.add_argument('shell', choices=SHELLS, help='the shell')
    return parser


def whole_parser() -> argparse.ArgumentParser:
    """One parser with every sub-command, for completion only; it parses nothing."""
    import shtab

    root = argparse.ArgumentParser(prog='gclip')
    root.add_argument('--version', action='version', version='')
    _add_commands(root, COMMANDS, 'gclip_mm.cli')
    _complete_values(root, shtab.FILE)
    return root


def _add_commands(parser: argparse.ArgumentParser, commands: dict[str, str], package: str) -> None:
    """Add the sub-commands of a package, those of ``convert`` included."""
    group = parser.add_subparsers()
    for name, text in commands.items():
        if name == 'convert':
            _add_commands(group.add_parser(name, help=text), CONVERTERS, f'{package}.convert')
            continue
        try:
            own = import_module(f'{package}.{name}').build_parser()
        except ImportError:
            # Without MMDetection a few commands cannot run. Their names are completed nevertheless.
            group.add_parser(name, help=text)
        else:
            group.add_parser(name, help=text, parents=[own], add_help=False)


def _complete_values(parser: argparse.ArgumentParser, file: object) -> None:
    """Say of each argument what its value is: a path, or a recipe."""
    recipes = sorted(path.stem for path in RECIPES.glob('*.py'))
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                _complete_values(child, file)
        elif action.type is Path or action.dest in _PATHS:
            action.complete = file  # type: ignore[attr-defined]
        elif action.dest == 'clip':
            action.choices = recipes


def main(argv: list[str] | None = None, prog: str = 'gclip completion') -> int:
    """Run the command; returns the exit code."""
    args = build_parser(prog).parse_args(argv)
    try:
        import shtab
    except ImportError:
        print(f'{prog}: error: needs shtab; pip install gclip-mm[completion]', file=sys.stderr)
        return 1
    print(shtab.complete(whole_parser(), args.shell))
    return 0
