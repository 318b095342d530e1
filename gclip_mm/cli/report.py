"""``gclip report``: pictures and final metrics of a training run."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ..analysis.run_files import (
    RunFilesError,
    Scalars,
    find_checkpoint,
    find_config,
    find_log,
    read_scalars,
)
from .arguments import add_json, new_parser, only_json

DESCRIPTION = """\
Draw detections and curves of a training run and print its metrics.

Draws the detections on held-out images beside the ground truth, and the curves of the loss and of
the gradient norm before and after clipping; then prints the paths of log, checkpoint and
pictures."""


def build_parser(prog: str = 'gclip report') -> argparse.ArgumentParser:
    """The parser."""
    parser = new_parser(prog, DESCRIPTION, 'gclip report work_dirs/quickstart')
    parser.add_argument('work_dir', type=Path, help='work_dir of the run')
    parser.add_argument('--config', type=Path, help='default: the one saved in the work_dir')
    parser.add_argument('--checkpoint', type=Path, help='default: the last of the work_dir')
    parser.add_argument('--out', type=Path, help='folder of the pictures (WORK_DIR/report)')
    parser.add_argument('--num-images', type=int, default=6, help='images to draw (%(default)s)')
    parser.add_argument(
        '--score-thr', type=float, default=0.5, help='draw detections above it (%(default)s)'
    )
    parser.add_argument('--device', default='cpu', help='cpu, cuda:0, ... (%(default)s)')
    add_json(parser)
    return parser


def parse_args(argv: list[str] | None = None, prog: str = 'gclip report') -> argparse.Namespace:
    """Parse and check the arguments."""
    parser = build_parser(prog)
    args = parser.parse_args(argv)
    if args.num_images < 1:
        parser.error(f'--num-images must be at least 1, got {args.num_images}')
    if not args.work_dir.is_dir():
        parser.error(f'{args.work_dir} is not a folder; give the work_dir of a run')
    return args


def describe(scalars: Scalars) -> str:
    """The final metrics in one line: mAP and mAP50, if they were measured."""
    metrics = scalars.last_metrics()
    shown = {}
    for name in sorted(metrics):
        short = name.split('/', 1)[1]
        if short in ('bbox_mAP', 'mAP'):
            shown[f'mAP ({name})'] = metrics[name]
        elif short in ('bbox_mAP_50', 'AP50'):
            shown[f'mAP50 ({name})'] = metrics[name]
    text = ', '.join(f'{name} {value:.3f}' for name, value in shown.items()) or 'not validated'
    diverged = scalars.lost_from()
    if diverged is not None:
        text += f'; lost to NaN or infinity from step {diverged}'
    return text


def main(argv: list[str] | None = None, prog: str = 'gclip report') -> int:
    """Run the command; returns the exit code."""
    args = parse_args(argv, prog)
    try:
        with only_json(args.json) as result:
            result.update(run(args))
    except RunFilesError as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    return 0


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Draw the pictures and print the summary; returns what ``--json`` prints.

    Raises:
        RunFilesError: the run lacks a file.
    """
    scalars = read_scalars(args.work_dir)
    config = args.config or find_config(args.work_dir)
    checkpoint = args.checkpoint or find_checkpoint(args.work_dir)
    for path in (config, checkpoint):
        if not path.is_file():
            raise RunFilesError(f'{path} does not exist')
    # Imported late, because Matplotlib and the detector's packages are slow to import.
    from ..analysis.pictures.run import detections, save_curves, save_detections

    out = args.out or args.work_dir / 'report'
    out.mkdir(parents=True, exist_ok=True)
    figures = describe(scalars)
    title = config.stem
    curves = save_curves(scalars, out / 'curves.png', title)
    print(f'running the detector on {args.num_images} images', file=sys.stderr)
    images, samples, metainfo = detections(config, checkpoint, args.num_images, args.device)
    drawn = save_detections(
        images, samples, metainfo, out / 'detections.png', args.score_thr, f'{title}: {figures}'
    )
    log = find_log(args.work_dir)
    print()
    for name, value in (
        ('result', figures),
        ('log', log or 'none'),
        ('checkpoint', checkpoint),
        ('detections', drawn),
        ('curves', curves),
    ):
        print(f'{name:<11} {value}')
    return {
        'metrics': scalars.last_metrics(),
        'lost_from': scalars.lost_from(),
        'log': log,
        'config': config,
        'checkpoint': checkpoint,
        'detections': drawn,
        'curves': curves,
    }
