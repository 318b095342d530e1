"""``gclip spikes``: draw the images behind the gradient spikes of a run, with their boxes."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from mmengine.utils import ProgressBar

from ..analysis.annotations import AnnotationIndex
from ..analysis.quiet import quiet_logs
from ..analysis.spikes import SpikesError, rank_images, read_spikes
from ..engine.configs import LaunchError, load_config
from .arguments import add_cfg_options, add_json, new_parser, only_json
from .launch import explain_missing_data

DESCRIPTION = """\
Draw the images behind the spikes of a run, with their boxes.

Reads spikes.jsonl (written by GClipSpikeHook), draws one sheet for each spike, the largest first,
and lists the images that were in most of the spikes. A batch holds innocent images too: look for
the image that is in spike after spike, and for what is marked in red. The boxes are those of the
training data set of the config, on the image file itself, before any augmentation."""


def build_parser(prog: str = 'gclip spikes') -> argparse.ArgumentParser:
    """The parser."""
    parser = new_parser(
        prog, DESCRIPTION, 'gclip spikes configs/bccd/faster-rcnn_tiny_bccd.py work_dirs/bccd'
    )
    parser.add_argument('config', help='config of the run: names the training data set')
    parser.add_argument('spikes', type=Path, help='spikes.jsonl, or the work_dir that holds it')
    parser.add_argument('--out', type=Path, help='folder (spike_sheets/ beside the file)')
    parser.add_argument(
        '--limit', type=int, default=20, help='spikes to draw, the largest first (%(default)s)'
    )
    parser.add_argument('--iter', type=int, nargs='+', help='draw these iterations only')
    parser.add_argument(
        '--list', type=int, default=10, help='images to list by number of spikes (%(default)s)'
    )
    add_json(parser)
    add_cfg_options(parser)
    return parser


def parse_args(argv: list[str] | None = None, prog: str = 'gclip spikes') -> argparse.Namespace:
    """Parse and check the arguments."""
    parser = build_parser(prog)
    args = parser.parse_args(argv)
    for name in ('limit', 'list'):
        if getattr(args, name) < 1:
            parser.error(f'--{name} must be at least 1, got {getattr(args, name)}')
    return args


def main(argv: list[str] | None = None, prog: str = 'gclip spikes') -> int:
    """Run the command; returns the exit code."""
    args = parse_args(argv, prog)
    try:
        with only_json(args.json) as result:
            result.update(run(args))
    except (SpikesError, LaunchError, ValueError) as error:
        print(f'{prog}: error: {error}', file=sys.stderr)
        return 1
    return 0


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Read the spikes, draw the sheets and list the images; returns what ``--json`` prints.

    Raises:
        SpikesError, LaunchError, ValueError: a file or a setting is missing.
    """
    spikes = read_spikes(args.spikes)
    cfg = load_config(args.config, args.cfg_options, None, 'none')
    if args.iter:
        missing = sorted(set(args.iter) - {spike.iter for spike in spikes})
        if missing:
            raise SpikesError(f'--iter: no spike at {", ".join(map(str, missing))}')
    with explain_missing_data(cfg), quiet_logs():
        index = AnnotationIndex(cfg)
    if not spikes:
        print('No spikes.')
        return {'spikes': [], 'images': [], 'out': None}
    # Matplotlib and OpenCV are imported late, because they are slow.
    from ..analysis.pictures.backend import plt
    from ..analysis.pictures.spikes import Looked, draw_spike, listing

    ranking = rank_images(spikes)
    counts = {image.name: count for image, count in ranking}
    looked = Looked(index)
    if args.iter:
        chosen = [spike for spike in spikes if spike.iter in args.iter]
    else:
        chosen = sorted(spikes, key=lambda spike: spike.size, reverse=True)[: args.limit]
    folder = args.spikes if args.spikes.is_dir() else args.spikes.parent
    out = args.out or folder / 'spike_sheets'
    out.mkdir(parents=True, exist_ok=True)
    bar = ProgressBar(len(chosen), file=sys.stderr)
    sheets = []
    for spike in chosen:
        figure = draw_spike(spike, looked, counts)
        name = f'{spike.optimizer}_' if spike.optimizer else ''
        sheets.append(out / f'{name}iter_{spike.iter:06d}.png')
        figure.savefig(sheets[-1], dpi=90)
        plt.close(figure)
        bar.update()
    print(file=sys.stderr)
    print(listing(ranking, len(spikes), looked, args.list))
    print(f'Saved {len(chosen)} sheets to {out}')
    return {
        'spikes': [
            {'iter': s.iter, 'cause': s.cause, 'grad_norm': s.grad_norm, 'sheet': sheet}
            for s, sheet in zip(chosen, sheets, strict=True)
        ],
        'images': [
            {'path': i.path, 'img_id': i.img_id, 'spikes': count, 'faults': looked[i][2]}
            for i, count in ranking[: args.list]
        ],
        'out': out,
    }
