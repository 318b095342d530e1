"""``gclip cost``: what clipping costs beyond the machines at hand."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..analysis.benchmark.cost_model import MODELS, Hardware, check_table, table
from ..clipping import CLIPPERS
from .arguments import new_parser

DESCRIPTION = """\
Estimate what clipping costs on 8 to 1024 GPUs, for 1B to 100B parameters.

Counts, for each rule, the bytes that a GPU reads and writes, the all-reduces and their bytes, the
kernel launches and the state in memory, and turns them into a time with the hardware figures below,
which are assumptions and can be set. Prints the table of docs/scaling.md."""
#: One rule of each kind: global, per tensor, per unit, elementwise without and with state.
SHOWN = ['NormClip', 'AdaGC', 'AGC', 'ValueClip', 'SpikeClip']


def build_parser(prog: str = 'gclip cost') -> argparse.ArgumentParser:
    """The parser."""
    parser = new_parser(
        prog,
        DESCRIPTION,
        'gclip cost',
        'gclip cost --hbm 2.0e12 --sizes 7 --gpus 16 --rules NormClip AGC',
        'gclip cost --check results/benchmark/faster-rcnn_r50_cpu.csv',
    )
    known = ', '.join(map(str, MODELS))
    parser.add_argument(
        '--sizes',
        nargs='+',
        type=int,
        choices=MODELS,
        default=[1, 13, 100],
        metavar='N',
        help=f'billions of parameters (default: 1 13 100; known: {known})',
    )
    parser.add_argument(
        '--gpus',
        nargs='+',
        type=int,
        default=[8, 64, 1024],
        metavar='N',
        help='GPUs that the parameters are spread over (default: 8 64 1024)',
    )
    parser.add_argument(
        '--rules',
        nargs='+',
        choices=list(CLIPPERS),
        default=SHOWN,
        metavar='RULE',
        help=f'rules (default: {" ".join(SHOWN)}; known: {", ".join(CLIPPERS)})',
    )
    described = Hardware.__doc__ or ''
    for field, value in Hardware._field_defaults.items():
        text = described.partition(f'{field}: ')[2].partition('.\n')[0]
        parser.add_argument(
            f'--{field.replace("_", "-")}',
            type=type(value),
            default=value,
            metavar='X',
            help=f'{" ".join(text.split())} (default: {value:g})',
        )
    parser.add_argument(
        '--check',
        type=Path,
        metavar='CSV',
        help='instead: the bytes of each rule beside the times that `gclip benchmark` measured',
    )
    return parser


def main(argv: list[str] | None = None, prog: str = 'gclip cost') -> int:
    """Run the command; returns the exit code."""
    parser = build_parser(prog)
    args = parser.parse_args(argv)
    if args.check is not None:
        if not args.check.is_file():
            parser.error(f'--check: {args.check} is not there')
        print('\n'.join(check_table(args.check)))
        return 0
    if min(args.gpus) < 1:
        parser.error('--gpus: at least 1')
    hardware = Hardware(**{field: getattr(args, field) for field in Hardware._fields})
    if min(hardware) <= 0:
        parser.error('the figures of the hardware must be above 0')
    print('\n'.join(table(args.sizes, args.gpus, args.rules, hardware)))
    return 0
