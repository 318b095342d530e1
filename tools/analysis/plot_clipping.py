"""What clipping did in one run or several, drawn from their JSON logs alone.

    python tools/analysis/plot_clipping.py work_dirs/agc work_dirs/norm --out clipping.png

Four panels over the iterations: the loss, and from where on the run is lost; the gradient norm
before and after clipping against the threshold; the share of clipped units; and the steps whose
gradient was not finite.
MMEngine logs the norms and the loss as means over ``log_processor.window_size`` steps,
``nonfinite`` as the share of the steps since the line before, the other numbers of the last step. A
run without clipping shows a non-finite step by its mean norm, for as long as it is in the window.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

# A checkout works without being installed.
sys.path.insert(0, str(Path(__file__).resolve().parent))

import matplotlib  # noqa: E402

matplotlib.use('Agg')  # no display is needed, nor looked for

import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
from run_files import RunFilesError, Scalars, read_scalars  # noqa: E402

#: Okabe and Ito's colours, told apart by everybody.
COLORS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000', '#999999')


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Draw gradient norm, threshold, clipped share, skipped steps and loss of runs.'
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
        '--names', nargs='+', help='what to call the runs; default: the names of their folders'
    )
    parser.add_argument('--title', default='', help='title of the figure')
    parser.add_argument(
        '--smooth', type=int, default=1, help='running median over this many log lines (1: none)'
    )
    args = parser.parse_args(argv)
    if args.names and len(args.names) != len(args.runs):
        parser.error(f'--names has {len(args.names)} names for {len(args.runs)} runs')
    if args.smooth < 1:
        parser.error(f'--smooth must be at least 1, got {args.smooth}')
    if args.out.suffix.lower() not in ('.png', '.pdf', '.svg'):
        parser.error(f'--out must end in .png, .pdf or .svg, got {args.out}')
    return args


def run_names(runs: Sequence[Path]) -> list[str]:
    """Short names that tell the runs apart: as many folders, from the end, as that takes."""
    parts = [path.resolve().parts for path in runs]
    for depth in range(1, max(len(p) for p in parts) + 1):
        names = ['/'.join(p[-depth:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    return [f'{p[-1]} ({i})' for i, p in enumerate(parts, 1)]


def series(scalars: Scalars, key: str, smooth: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of what is finite, smoothed by a running median."""
    steps, values = (np.asarray(x, float) for x in scalars.series(key))
    keep = np.isfinite(values)
    steps, values = steps[keep], values[keep]
    if smooth > 1 and len(values):
        before = (smooth - 1) // 2
        padded = np.pad(values, (before, smooth - 1 - before), mode='edge')
        windows = np.lib.stride_tricks.sliding_window_view(padded, smooth)
        values = np.median(windows, axis=1)
    return steps, values


def draw(runs: dict[str, Scalars], title: str = '', smooth: int = 1) -> plt.Figure:
    """The figure of one run or several.

    Args:
        runs: what they logged, by name.
        title: title of the figure.
        smooth: log lines in a running median.
    """
    figure, axes = plt.subplots(
        4, 1, figsize=(9, 10), sharex=True, layout='constrained', height_ratios=(3, 4, 3, 1)
    )
    loss, norm, share, skipped = axes
    drawn, others = set(), []
    for i, (name, scalars) in enumerate(runs.items()):
        color = COLORS[i % len(COLORS)]
        lost = scalars.lost_from()
        label = name if lost is None else f'{name}: lost from iteration {lost} on'
        _line(loss, scalars, 'loss', color, '-', smooth, label)
        if lost is not None:
            # A run that is lost from its first line on has no other mark to be seen by.
            loss.axvline(lost, color=color, ls=':', lw=1.3)
        for key, style in (('clip_threshold', ':'), ('grad_norm', '-'), ('grad_norm_post', '--')):
            if key == 'clip_threshold' and not scalars.bounds_the_norm():
                others.append(f'{name}: {scalars.series(key)[1][-1]:.3g}')
            elif _line(norm, scalars, key, color, style, smooth, positive=True):
                drawn.add(key)
        _line(share, scalars, 'clip_fraction', color, '-', smooth)
        steps = scalars.nonfinite_steps()
        skipped.plot(steps, np.full(len(steps), i), '|', color=color, ms=12, mew=1.5)
        knows = any({'nonfinite', 'grad_norm'} & row.keys() for row in scalars.train)
        label = f'{len(steps)}' if steps else 'none' if knows else 'unknown'
        skipped.text(1.005, i, label, transform=skipped.get_yaxis_transform(), va='center')
    _finish(axes, list(runs), drawn)
    if others:
        text = 'not drawn, since they are no bound on this norm: thresholds of '
        norm.set_title(text + ', '.join(others), fontsize=8, loc='left')
    if title:
        figure.suptitle(title)
    return figure


def _line(
    axes: plt.Axes,
    scalars: Scalars,
    key: str,
    color: str,
    style: str,
    smooth: int,
    label: str | None = None,
    positive: bool = False,
) -> bool:
    steps, values = series(scalars, key, smooth)
    if positive:
        steps, values = steps[values > 0], values[values > 0]
    marker = 'o' if len(steps) == 1 else None
    axes.plot(steps, values, style, color=color, lw=1.3, marker=marker, ms=4, label=label)
    return len(steps) > 0


def _finish(axes: Sequence[plt.Axes], names: list[str], drawn: set[str]) -> None:
    loss, norm, share, skipped = axes
    loss.set_ylabel('loss')
    loss.legend(fontsize=8)
    norm.set_ylabel('gradient norm')
    if drawn:
        norm.set_yscale('log')
        labels = {
            'grad_norm': ('-', 'before clipping'),
            'grad_norm_post': ('--', 'after clipping'),
            'clip_threshold': (':', 'threshold'),
        }
        handles = [
            plt.Line2D([], [], color='#444444', ls=style, label=label)
            for key, (style, label) in labels.items()
            if key in drawn
        ]
        norm.legend(handles=handles, fontsize=8, ncols=len(handles))
    else:
        _note(norm, 'no gradient norm was logged: the runs did not clip')
    share.set_ylabel('clipped share')
    share.set_ylim(-0.03, 1.03)
    if not any(len(line.get_xdata()) for line in share.lines):
        _note(share, 'no share was logged: the runs clip by MMEngine itself, or not at all')
    skipped.set_ylabel('not finite')
    skipped.set_yticks(range(len(names)), names, fontsize=8)
    skipped.set_ylim(len(names) - 0.5, -0.5)
    skipped.set_xlabel('iteration')
    for panel in axes:
        panel.grid(alpha=0.25, which='both' if panel is norm else 'major')


def _note(axes: plt.Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, ha='center', va='center', transform=axes.transAxes)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    names = args.names or run_names(args.runs)
    try:
        runs = {}
        for name, path in zip(names, args.runs, strict=True):
            if not path.exists():
                raise RunFilesError(f'{path} is not there')
            scalars = read_scalars(path)
            if not scalars.train:
                raise RunFilesError(f'{path} has no training step in its log')
            members = {f'{name} {part}': scalars.member(part) for part in scalars.members()}
            runs.update(members or {name: scalars})
    except RunFilesError as error:
        print(f'plot_clipping.py: error: {error}', file=sys.stderr)
        return 1
    figure = draw(runs, args.title, args.smooth)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=120)
    plt.close(figure)
    for name, scalars in runs.items():
        steps, lost = [row['step'] for row in scalars.train], scalars.lost_from()
        end = '' if lost is None else f'; lost from {lost} on'
        count = len(scalars.nonfinite_steps()) or 'none'
        print(f'{name}: {len(steps)} log lines, iterations {steps[0]} to {steps[-1]}; '
              f'{count} of them tells of a gradient that is not finite{end}')  # fmt: skip
        hidden = sum(not np.isfinite(row.get('loss', 0.0)) for row in scalars.train)
        if hidden and lost is None:
            print(f'  {hidden} lines have no loss to draw: MMEngine logs the mean of '
                  'log_processor.window_size steps, one of which was not finite')  # fmt: skip
    print(f'Saved {args.out}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
