"""``gclip sweep``: how large a learning rate does a config survive, with each rule and without?"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from ..analysis.record import AdviceError
from ..analysis.sweep import Sweep, SweepError, SweepOptions
from ..analysis.sweep_grid import summarise
from ..clipping import ClipConfigError
from ..engine.configs import LaunchError, load_config, optim_wrappers
from .arguments import add_cfg_options, add_config, add_json, new_parser, only_json

DESCRIPTION = """\
Find how large a learning rate a config survives, with each clipping rule and without.

Trains every combination of learning rate, rule and seed, each in a process of its own, several at
once with --jobs (one for each GPU, if there are any). In --out, rewritten whenever a
training ends:

sweep.csv
    a line a training: how it ended, its metric, its rule, and the command that trains it alone.
sweep.md
    the table, rule by learning rate, and the summary.
sweep.png
    the metric over the learning rate, a line a rule, with the spread over the seeds and a cross for
    each training that diverged.
cells/
    a work dir for each training, its log and its outcome.json.

The same command continues where an earlier one stopped, and trains again what was trained with
other settings. A rule is none, a recipe in configs/_base_/clip by name, a file, or inline as
type=AGC,clip_factor=0.02; LABEL: before it gives it a name.

With --tune advise the thresholds of recipes of ValueClip, NormClip, AGC and ZClip are those
that `gclip advise` suggests for each learning rate, from one short recording; other rules,
what is given inline, and all with --tune recipe, keep the numbers that they have."""


def build_parser(prog: str = 'gclip sweep') -> argparse.ArgumentParser:
    """The parser."""
    parser = new_parser(
        prog,
        DESCRIPTION,
        'gclip sweep configs/bccd/faster-rcnn_tiny_bccd_none.py --lr 0.04 0.08 0.16 0.5 1.5 \\\n'
        '      --clip none value norm agc zclip autoclip --seeds 0 1 2 --out work_dirs/sweep',
    )
    add_config(parser)
    parser.add_argument('--lr', type=float, nargs='+', required=True, help='learning rates')
    parser.add_argument(
        '--clip', nargs='+', required=True, metavar='RULE', help='none, recipes, inline rules'
    )
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2], help='(%(default)s)')
    parser.add_argument(
        '--tune',
        choices=['advise', 'recipe'],
        default='advise',
        help='where the thresholds of recipes come from (%(default)s)',
    )
    parser.add_argument('--out', type=Path, help='folder (work_dirs/sweep/<config name>)')
    parser.add_argument(
        '--jobs', type=int, help='trainings at once (one for each GPU; 1 without a GPU)'
    )
    parser.add_argument(
        '--metric', default='bbox_mAP', help='what counts, of the last validation (%(default)s)'
    )
    parser.add_argument(
        '--enough',
        type=float,
        default=0.9,
        metavar='SHARE',
        help='a rate counts as trained if no seed is lost and their mean is at least this share of '
        'the best without clipping (%(default)s)',
    )
    parser.add_argument(
        '--patience',
        type=int,
        default=20,
        help='a training has diverged after so many consecutive non-finite losses (%(default)s)',
    )
    parser.add_argument('--title', help='of the figure (the name of the config)')
    parser.add_argument(
        '--keep-checkpoints', action='store_true', help='keep them when a training has ended'
    )
    parser.add_argument(
        '--report',
        action='store_true',
        help='train nothing; write the files from the outcomes that exist',
    )
    add_json(parser)
    add_cfg_options(parser)
    return parser


def parse_args(argv: list[str] | None = None, prog: str = 'gclip sweep') -> argparse.Namespace:
    """Parse and check the arguments."""
    parser = build_parser(prog)
    args = parser.parse_args(argv)
    if any(not 0 < lr < float('inf') for lr in args.lr):
        parser.error(f'--lr must be above 0, got {args.lr}')
    for name in ('lr', 'clip', 'seeds'):
        values = getattr(args, name)
        if len(set(values)) < len(values):
            parser.error(f'--{name} names something twice: {values}')
    if args.jobs is not None and args.jobs < 1:
        parser.error(f'--jobs must be at least 1, got {args.jobs}')
    if not 0 < args.enough <= 1:
        parser.error(f'--enough must be above 0 and at most 1, got {args.enough}')
    if args.patience < 1:
        parser.error(f'--patience must be at least 1, got {args.patience}')
    args.lr = sorted(args.lr)
    return args


def main(argv: list[str] | None = None, prog: str = 'gclip sweep') -> int:
    """Run the command; returns the exit code, 130 after Ctrl-C."""
    args = parse_args(argv, prog)
    try:
        with only_json(args.json) as result:
            result.update(run(args))
    except (SweepError, LaunchError, AdviceError, ClipConfigError) as error:
        print(f'{prog}: error: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Train, print and write; returns what ``--json`` prints.

    Raises:
        SweepError, LaunchError, AdviceError, ClipConfigError: a mistake in the command.
    """
    cfg = load_config(args.config, args.cfg_options, None, 'none')
    if len(list(optim_wrappers(cfg))) != 1:
        raise SweepError('the config must have one optim_wrapper with an optimizer')
    args.out = args.out or Path('work_dirs') / 'sweep' / Path(cfg.filename).stem
    args.out.mkdir(parents=True, exist_ok=True)
    options = SweepOptions(**{f.name: getattr(args, f.name) for f in fields(SweepOptions)})
    sweep = Sweep(options, cfg)
    print(
        f'{len(sweep.cells)} trainings, {len(sweep.results)} of them done: {args.out}', flush=True
    )
    if not args.report:
        sweep.run()
    if not sweep.results:
        raise SweepError(f'nothing has been trained in {args.out} with these settings')
    sweep.write()
    print(f'\n{sweep.text()}\n\nSaved to {args.out}: sweep.csv, sweep.md, sweep.png')
    summary = summarise(sweep.results, sweep.rules, args.lr, args.enough)
    return {
        'out': args.out,
        'files': ['sweep.csv', 'sweep.md', 'sweep.png'],
        'trainings': [
            {**asdict(cell), **asdict(sweep.results[cell])}
            for cell in sweep.cells
            if cell in sweep.results
        ],
        'rules': [asdict(row) for row in summary],
    }
