"""Which clipping rule governs which parameter of a config: a dry run, nothing is trained.

    python tools/analysis/show_routes.py configs/bccd/faster-rcnn_tiny_bccd_agc.py
    python tools/analysis/show_routes.py mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py \\
        --clip "type=AGC,clip_factor=0.01,exclude=[fc_cls]"
"""

from __future__ import annotations

import argparse
import csv
import re
import sys
from collections.abc import Sequence
from pathlib import Path

# A checkout works without being installed, and before an installed copy.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mmengine.config import DictAction  # noqa: E402

import gclip_mm  # noqa: E402, registers what a config of this package names
from gclip_mm.analysis.quiet import quiet_logs  # noqa: E402
from gclip_mm.analysis.routes import RouteRow, route_table  # noqa: E402
from gclip_mm.engine.apply_clip import load_clipped  # noqa: E402
from gclip_mm.engine.launch import LaunchError, check_clipping  # noqa: E402

COLUMNS = ('parameter', 'module', 'shape', 'units', 'rule', 'threshold', 'route')


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Print which clipping rule governs which parameter of a config.'
    )
    parser.add_argument(
        'config', help='config file, or a stock one as mmdet::faster_rcnn/<name>.py'
    )
    parser.add_argument(
        '--clip', metavar='RECIPE', help='put this recipe on the config first, as tools/train.py'
    )
    parser.add_argument(
        '--match', metavar='REGEX', help='list only parameters in whose name this is found'
    )
    parser.add_argument('--summary', action='store_true', help='leave the list of parameters out')
    parser.add_argument('--csv', type=Path, help='also write the list to this file')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='override settings of the config, as key=value',
    )
    args = parser.parse_args(argv)
    try:
        re.compile(args.match or '')
    except re.error as error:
        parser.error(f'--match {args.match!r} is no regular expression: {error}')
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
        weights = 0
        for row in members:
            size = 1
            for n in row.shape:
                size *= n
            weights += size
        units = sum(row.units for row in members)
        where = f'{optimizer}: {route}' if optimizer else route
        lines.append((rule, threshold, where, f'{len(members)}', f'{weights:,}', f'{units:,}'))
    head = ('rule', 'threshold', 'route', 'parameters', 'weights', 'units')
    return table(head, lines, right=(3, 4, 5))


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        cfg = load_clipped(args.config, args.clip, args.cfg_options, None, 'none')
        check_clipping(cfg)
        with quiet_logs():
            rows = route_table(cfg)
    except (LaunchError, gclip_mm.ClipConfigError) as error:
        print(f'show_routes.py: error: {error}', file=sys.stderr)
        return 1
    shown = [row for row in rows if args.match is None or re.search(args.match, row.name)]
    if not shown:
        print(f'show_routes.py: error: --match {args.match!r} is in no name', file=sys.stderr)
        return 1
    if not args.summary:
        print(table(COLUMNS, [cells(row) for row in shown], right=(2, 3)))
        print()
    print(summary(shown))
    if args.csv is not None:
        args.csv.parent.mkdir(parents=True, exist_ok=True)
        with args.csv.open('w', newline='') as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            writer.writerows(cells(row) for row in shown)
        print(f'Saved {args.csv}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
