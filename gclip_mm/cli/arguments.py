"""What the sub-commands share: the parser, the common arguments, and how an error is reported."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from . import EXIT_CODES


def new_parser(prog: str, description: str, *examples: str) -> argparse.ArgumentParser:
    """A parser whose help ends with examples and the exit codes.

    Args:
        prog: name of the command, such as ``gclip train``, or of the script, such as ``train.py``.
        description: shown as it is, line breaks included.
        examples: command lines.
    """
    lines = '\n'.join(f'  {example}' for example in examples)
    head = 'example' if len(examples) == 1 else 'examples'
    return argparse.ArgumentParser(
        prog=prog,
        description=description,
        epilog=f'{head}:\n{lines}\n\n{EXIT_CODES}',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add the positional argument ``config``."""
    parser.add_argument(
        'config', help='config file, or a stock one as mmdet::faster_rcnn/<name>.py'
    )


def add_cfg_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--cfg-options``."""
    from mmengine.config import DictAction

    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='override settings of the config, as key=value: a.b=1, a.b="[1,2]", a.0.b="(1,2)"; '
        'no white space inside a value',
    )


def add_launcher(parser: argparse.ArgumentParser, script: str) -> None:
    """Add ``--launcher`` and ``--local-rank``; ``script`` starts the command on several GPUs."""
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help=f'how the processes were started; {script} sets it',
    )
    # torch.distributed.launch passes it with a hyphen, and before PyTorch 2.0 with an underscore.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add ``--json``; see :func:`only_json`."""
    parser.add_argument(
        '--json',
        action='store_true',
        help='print one JSON object on stdout, and everything else on stderr; numbers that are '
        'not finite are the strings "nan", "inf" and "-inf"',
    )


def exit_code(run: Callable[[], object], *expected: type[Exception]) -> int:
    """Run a command: 0, or 1 and one line on stderr for an error of an expected class."""
    try:
        run()
    except expected as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    return 0


@contextlib.contextmanager
def only_json(wanted: bool) -> Iterator[dict[str, Any]]:
    """Collect the result of a command and print it as JSON, if ``--json`` was given.

    Within the block everything that is printed goes to stderr, what other packages print included.
    The block fills the dictionary; nothing is printed if the dictionary stays empty.

    Args:
        wanted: whether ``--json`` was given; otherwise the block runs as it is.
    """
    result: dict[str, Any] = {}
    if not wanted:
        yield result
        return
    with contextlib.redirect_stdout(sys.stderr):
        yield result
    if result:
        print(json.dumps(plain(result), indent=2))


def plain(value: Any) -> Any:
    """``value`` with nothing in it but what strict JSON knows."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
