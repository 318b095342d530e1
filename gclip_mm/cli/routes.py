"""``gclip routes``: print which clipping rule governs which parameter, without training."""

from __future__ import annotations

import argparse
import csv
import re
import sys
from collections.abc import Sequence
from math import prod
from pathlib import Path

from ..analysis.quiet import quiet_logs
from ..analysis.routes import RouteRow, route_table
from ..clipping import ClipConfigError
from ..engine.apply_clip import load_clipped
from ..engine.configs import LaunchError
from .arguments import add_cfg_options, add_config, add_json, new_parser, only_json
from .launch import check_clipping

COLUMNS = ('parameter', 'module', 'shape', 'units', 'rule', 'threshold', 'route')


def build_parser(prog: str = 'gclip routes') -> argparse.ArgumentParser:
    """The parser."""
    parser = new_parser(
        prog,
        'Print which clipping rule governs which parameter of a config. Nothing is trained.',
        'gclip routes configs/bccd/faster-rcnn_tiny_bccd_agc.py',
        'gclip routes mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py \\\n'
        '      --clip "type=AGC,clip_factor=0.01,exclude=[fc_cls]"',
    )
    add_config(parser)
    parser.add_argument(
        '--clip', metavar='RECIPE', help='put this recipe on the config first, as tools/train.py'
    )
    parser.add_argument(
        '--match', metavar='REGEX', help='list only parameters in whose name this is found'
    )
    parser.add_argument('--summary', action='store_true', help='leave the list of parameters out')
    parser.add_argument('--csv', type=Path, help='also write the list to this file')
    add_json(parser)
    add_cfg_options(parser)
    return parser


def parse_args(argv: list[str] | None = None, prog: str = 'gclip routes') -> argparse.Namespace:
    """Parse and check the arguments."""
    parser = build_parser(prog)
    args = parser.parse_args(argv)
    try:
        re.compile(args.match or '')
    except re.error as error:
        parser.error(f'--match {args.match!r} is not a regular expression: {error}')
    return args


def cells(row: RouteRow) -> tuple[str, ...]:
    """A row of the table as text, column by column."""
    name = f'{row.optimizer}: {row.name}' if row.optimizer else row.name
    shape = 'x'.join(map(str, row.shape)) or 'scalar'
    return name, row.module, shape, str(row.units), row.rule, row.threshold, row.route


def table(head: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Text in columns; those in ``right`` are aligned to the right."""
    widths = [max(len(row[k]) for row in [head, *rows]) for k in range(len(head))]

    def line(row: Sequence[str]) -> str:
        parts = [
            text.rjust(width) if k in right else text.ljust(width)
            for k, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        return '  '.join(parts).rstrip()

    return '\n'.join([line(head), line(['-' * width for width in widths]), *map(line, rows)])


def summary(rows: Sequence[RouteRow]) -> str:
    """How many parameters, weights and units each route governs."""
    groups: dict[tuple[str, ...], list[RouteRow]] = {}
    for row in rows:
        groups.setdefault((row.optimizer, row.route, row.rule, row.threshold), []).append(row)
    lines = []
    for (optimizer, route, rule, threshold), members in groups.items():
        weights = sum(prod(row.shape) for row in members)
        units = sum(row.units for row in members)
        where = f'{optimizer}: {route}' if optimizer else route
        lines.append((rule, threshold, where, f'{len(members)}', f'{weights:,}', f'{units:,}'))
    head = ('rule', 'threshold', 'route', 'parameters', 'weights', 'units')
    return table(head, lines, right=(3, 4, 5))


def main(argv: list[str] | None = None, prog: str = 'gclip routes') -> int:
    """Run the command; returns the exit code."""
    args = parse_args(argv, prog)
    try:
        with only_json(args.json) as result:
            cfg = load_clipped(args.config, args.clip, args.cfg_options, None, 'none')
            check_clipping(cfg)
            with quiet_logs():
                rows = route_table(cfg)
            shown = [r for r in rows if args.match is None or re.search(args.match, r.name)]
            if not shown:
                raise LaunchError(f'--match {args.match!r} is in no name')
            if not args.summary:
                print(table(COLUMNS, [cells(row) for row in shown], right=(2, 3)))
                print()
            print(summary(shown))
            if args.csv is not None:
                write_csv(args.csv, shown)
                print(f'Saved {args.csv}')
            result['routes'] = [row._asdict() for row in shown]
    except (LaunchError, ClipConfigError) as error:
        print(f'{prog}: error: {error}', file=sys.stderr)
        return 1
    return 0


def write_csv(path: Path, rows: Sequence[RouteRow]) -> None:
    """Write the table to a CSV file; its folder is made if necessary."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('w', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(cells(row) for row in rows)
