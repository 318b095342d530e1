"""``gclip plot``: draw what clipping did in one run or several, from their JSON logs alone."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

from ..analysis.pictures.backend import Figure, plt
from ..analysis.pictures.clipping import draw, run_names
from ..analysis.pictures.modules import draw_modules, read_modules
from ..analysis.run_files import RunFilesError, Scalars, read_scalars
from .arguments import new_parser

DESCRIPTION = """\
Draw gradient norm, threshold, clipped share, skipped steps and loss of runs.

Four panels over the iterations: the loss, and from where the run is lost; the gradient norm before
and after clipping against the threshold; the share of clipped units; and the steps whose gradient
was not finite. MMEngine logs the norms and the loss as means over log_processor.window_size steps,
and the other numbers for the logged step. A non-finite step between two log lines therefore shows
in the mean norm only, which is not finite for as long as the step is in the window.

With --modules, what GClipMonitorHook has written in one run: the share of clipped units of each
module over the iterations, and the units that were held back most often."""


def build_parser(prog: str = 'gclip plot') -> argparse.ArgumentParser:
    """The parser."""
    parser = new_parser(
        prog, DESCRIPTION, 'gclip plot work_dirs/agc work_dirs/norm --out clipping.png'
    )
    parser.add_argument(
        'runs',
        nargs='+',
        type=Path,
        metavar='WORK_DIR',
        help='work_dir of a run, one timestamp folder of it, or its scalars.json',
    )
    parser.add_argument('--out', type=Path, default=Path('clipping.png'), help='(%(default)s)')
    parser.add_argument(
        '--names',
        nargs='+',
        help='names of the runs (the names of their folders)',
    )
    parser.add_argument('--title', default='', help='title of the figure')
    parser.add_argument(
        '--smooth', type=int, default=1, help='running median over this many log lines (1: none)'
    )
    parser.add_argument(
        '--modules', action='store_true', help='draw the modules of one run instead'
    )
    return parser


def parse_args(argv: list[str] | None = None, prog: str = 'gclip plot') -> argparse.Namespace:
    """Parse and check the arguments."""
    parser = build_parser(prog)
    args = parser.parse_args(argv)
    if args.modules and len(args.runs) > 1:
        parser.error(f'--modules draws one run, got {len(args.runs)}')
    if args.names and len(args.names) != len(args.runs):
        parser.error(f'--names has {len(args.names)} names for {len(args.runs)} runs')
    if args.smooth < 1:
        parser.error(f'--smooth must be at least 1, got {args.smooth}')
    if args.out.suffix.lower() not in ('.png', '.pdf', '.svg'):
        parser.error(f'--out must end in .png, .pdf or .svg, got {args.out}')
    return args


def read_runs(paths: list[Path], names: list[str]) -> dict[str, Scalars]:
    """The scalars of the runs, by name; a run with several optimizers has an entry for each.

    Raises:
        RunFilesError: a run does not exist or has logged no training step.
    """
    runs: dict[str, Scalars] = {}
    for name, path in zip(names, paths, strict=True):
        if not path.exists():
            raise RunFilesError(f'{path} is not there')
        scalars = read_scalars(path)
        if not scalars.train:
            raise RunFilesError(f'{path} has no training step in its log')
        members = {f'{name} {part}': scalars.member(part) for part in scalars.members()}
        runs.update(members or {name: scalars})
    return runs


def _save(figure: Figure, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120)
    plt.close(figure)


def _plot_modules(args: argparse.Namespace, prog: str) -> int:
    try:
        log = read_modules(args.runs[0])
    except RunFilesError as error:
        print(f'{prog}: error: {error}', file=sys.stderr)
        return 1
    _save(draw_modules(log, args.title), args.out)
    print(f'{len(log.steps)} measured steps, {len(log.modules)} modules')
    for name, kept, count in log.ranked[:5]:
        print(f'  {name}: kept {kept:.2g} (median) in {count} steps')
    print(f'Saved {args.out}')
    return 0


def main(argv: list[str] | None = None, prog: str = 'gclip plot') -> int:
    """Run the command; returns the exit code."""
    args = parse_args(argv, prog)
    if args.modules:
        return _plot_modules(args, prog)
    try:
        runs = read_runs(args.runs, args.names or run_names(args.runs))
    except RunFilesError as error:
        print(f'{prog}: error: {error}', file=sys.stderr)
        return 1
    _save(draw(runs, args.title, args.smooth), args.out)
    for name, scalars in runs.items():
        steps, lost = [row['step'] for row in scalars.train], scalars.lost_from()
        end = '' if lost is None else f'; lost from {lost} on'
        found = 'no gradient norm logged'
        if scalars.shows_nonfinite():
            count = len(scalars.nonfinite_steps()) or 'none'
            found = f'{count} of them with a non-finite gradient'
        print(f'{name}: {len(steps)} log lines, iterations {steps[0]} to {steps[-1]}; {found}{end}')
        hidden = sum(not math.isfinite(row.get('loss', 0.0)) for row in scalars.train)
        if hidden and lost is None:
            print(
                f'  {hidden} lines have no loss to draw: MMEngine logs the mean of '
                'log_processor.window_size steps, one of which was not finite'
            )
    print(f'Saved {args.out}')
    return 0
