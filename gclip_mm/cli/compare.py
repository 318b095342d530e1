"""``gclip compare``: runs side by side in one picture: loss, gradient norm and detections."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..analysis.pictures.comparison import COLORS, Run, save_comparison
from ..analysis.run_files import RunFilesError, main_metric, read_scalars
from .arguments import add_json, new_parser, only_json


def named_run(text: str) -> tuple[str, Path]:
    """Split ``LABEL=WORK_DIR``."""
    label, separator, path = text.partition('=')
    if not separator or not label or not path:
        raise argparse.ArgumentTypeError(f'{text!r} is not LABEL=WORK_DIR')
    return label, Path(path)


def build_parser(prog: str = 'gclip compare') -> argparse.ArgumentParser:
    """The parser."""
    parser = new_parser(
        prog,
        'Draw runs of the same data set side by side.',
        "gclip compare --run 'without clipping=work_dirs/bccd_none' \\\n"
        "      --run 'with clipping=work_dirs/bccd_norm' --out before_after.png",
    )
    parser.add_argument(
        '--run',
        dest='runs',
        type=named_run,
        action='append',
        required=True,
        metavar='LABEL=WORK_DIR',
        help=f'a run; give it two to {len(COLORS)} times',
    )
    parser.add_argument('--out', type=Path, default=Path('compare_runs.png'), help='(%(default)s)')
    parser.add_argument('--title', default='', help='headline of the picture')
    parser.add_argument('--num-images', type=int, default=2, help='images to draw (%(default)s)')
    parser.add_argument(
        '--score-thr', type=float, default=0.5, help='draw detections above it (%(default)s)'
    )
    parser.add_argument('--device', default='cpu', help='cpu, cuda:0, ... (%(default)s)')
    add_json(parser)
    return parser


def parse_args(argv: list[str] | None = None, prog: str = 'gclip compare') -> argparse.Namespace:
    """Parse and check the arguments."""
    parser = build_parser(prog)
    args = parser.parse_args(argv)
    if not 2 <= len(args.runs) <= len(COLORS):
        parser.error(f'give --run two to {len(COLORS)} times, got {len(args.runs)}')
    if args.num_images < 1:
        parser.error(f'--num-images must be at least 1, got {args.num_images}')
    return args


def main(argv: list[str] | None = None, prog: str = 'gclip compare') -> int:
    """Run the command; returns the exit code."""
    args = parse_args(argv, prog)
    try:
        with only_json(args.json) as result:
            runs = [Run(label, path, read_scalars(path)) for label, path in args.runs]
            print(f'running {len(runs)} detectors on {args.num_images} images', file=sys.stderr)
            save_comparison(
                runs, args.out, args.title, args.num_images, args.score_thr, args.device
            )
            for run in runs:
                print(f'{run.label}: {run.outcome()}')
            print(args.out)
            result['runs'] = [
                {
                    'label': run.label,
                    'work_dir': run.work_dir,
                    'metric': main_metric(run.scalars),
                    'lost_from': run.scalars.lost_from(),
                }
                for run in runs
            ]
            result['picture'] = args.out
    except RunFilesError as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    return 0
