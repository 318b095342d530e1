"""The console command ``gclip``: one module for each sub-command.

Importing this module loads no sub-command. :func:`main` imports the chosen one.
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Callable
from importlib import import_module
from typing import NoReturn

from ..version import __version__

#: Name of each sub-command and one line of help; the module has the same name, ``_`` for ``-``.
COMMANDS = {
    'train': 'train a model of a config, with clipping',
    'test': 'evaluate a checkpoint',
    'advise': 'measure the gradients of a config and suggest clipping for it',
    'sweep': 'train a grid of learning rates, rules and seeds',
    'plot': 'draw what clipping did in one run or several',
    'report': 'draw detections and curves of a run, and print its metrics',
    'compare': 'draw several runs side by side',
    'spikes': 'draw the images behind the gradient spikes of a run',
    'routes': 'print which rule clips which parameter',
    'relations': 'draw images of a scene-graph data set with their relations',
    'sg-eval': 'compute every scene-graph metric under every published convention',
    'export-onnx': 'write a trained scene-graph model as ONNX files',
    'convert': 'convert a data set, or make proposal files',
    'benchmark': 'time the rules against other implementations',
    'cost': 'estimate the cost of clipping on many GPUs',
    'check': 'put a recipe on every stock MMDetection config',
    'completion': 'print the completion script of a shell',
}

EXAMPLE = 'example:\n  gclip train mmdet::retinanet/retinanet_r50_fpn_1x_coco.py --clip agc'
EXIT_CODES = 'exit codes: 0 success, 1 failure (stderr says why), 2 wrong arguments'


class _Parser(argparse.ArgumentParser):
    """Names all sub-commands when an unknown one is given."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f'{self.prog}: error: {message}\n')


def build_parser(
    prog: str = 'gclip', commands: dict[str, str] = COMMANDS, example: str = EXAMPLE
) -> argparse.ArgumentParser:
    """The parser of a command that consists of sub-commands.

    Args:
        prog: name of the command.
        commands: name and one line of help for each sub-command.
        example: shown below the list.
    """
    width = max(map(len, commands))
    listing = '\n'.join(f'  {name:<{width}}  {text}' for name, text in commands.items())
    parser = _Parser(
        prog=prog,
        usage=f'{prog} COMMAND [arguments]   ({prog} COMMAND --help describes a command)',
        description=f'commands:\n{listing}',
        epilog=f'{example}\n\n{EXIT_CODES}',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('command', metavar='COMMAND', help=argparse.SUPPRESS)
    return parser


def dispatch(
    parser: argparse.ArgumentParser, commands: dict[str, str], package: str, argv: list[str]
) -> int:
    """Run the sub-command that ``argv`` names.

    Args:
        parser: of :func:`build_parser`.
        commands: the sub-commands; each is a module of ``package`` with ``main(argv, prog)``.
        package: absolute name of the package that holds the modules.
        argv: the arguments, the name of the sub-command first.

    Returns:
        The exit code.
    """
    if not argv:
        parser.print_help(sys.stderr)
        return 2
    name = parser.parse_args(argv[:1]).command
    if name not in commands:
        near = difflib.get_close_matches(name, commands, n=1)
        hint = f'; did you mean {near[0]!r}?' if near else ''
        parser.error(f'unknown command {name!r}{hint} (commands: {", ".join(commands)})')
    if os.getcwd() not in sys.path:
        # A config imports rules and hooks of one's own from here, as it does with `python -m`.
        # At the end, because a file here must not take the place of an installed package.
        sys.path.append(os.getcwd())
    main: Callable[..., int] = import_module(f'{package}.{name.replace("-", "_")}').main
    return main(argv[1:], prog=f'{parser.prog} {name}')


def main(argv: list[str] | None = None, prog: str = 'gclip') -> int:
    """Run ``gclip``.

    Args:
        argv: the arguments without the program's name; None: those of the process.
        prog: name of the program in help and errors.

    Returns:
        0: success; 1: failure, explained on stderr; 2: wrong arguments.
    """
    parser = build_parser(prog)
    parser.add_argument('--version', action='version', version=f'gclip_mm {__version__}')
    try:
        return dispatch(parser, COMMANDS, __name__, sys.argv[1:] if argv is None else argv)
    except BrokenPipeError:
        # The reader, such as `head`, has ended. The interpreter must not flush stdout again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
