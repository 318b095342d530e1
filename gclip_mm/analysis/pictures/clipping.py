"""What clipping did in one run or several: loss, norms, clipped share, non-finite steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..run_files import Scalars
from .backend import Axes, Figure, plt

#: The palette of Okabe and Ito, which is safe for colour-blind readers.
COLORS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000', '#999999')

#: A loss above this multiple of the median is drawn on a logarithmic axis.
EXPLODED = 100


def run_names(runs: Sequence[Path]) -> list[str]:
    """Short names that differ: as many trailing folders of the paths as are necessary."""
    parts = [path.resolve().parts for path in runs]
    for depth in range(1, max(len(p) for p in parts) + 1):
        names = ['/'.join(p[-depth:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    return [f'{p[-1]} ({i})' for i, p in enumerate(parts, 1)]


def series(scalars: Scalars, key: str, smooth: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Steps (N,) and values (N,) where the values are finite, smoothed by a running median."""
    steps, values = (np.asarray(x, float) for x in scalars.series(key))
    keep = np.isfinite(values)
    steps, values = steps[keep], values[keep]
    if smooth > 1 and len(values):
        before = (smooth - 1) // 2
        padded = np.pad(values, (before, smooth - 1 - before), mode='edge')
        windows = np.lib.stride_tricks.sliding_window_view(padded, smooth)
        values = np.median(windows, axis=1)
    return steps, values


def draw(runs: dict[str, Scalars], title: str = '', smooth: int = 1) -> Figure:
    """The figure of one run or several.

    Args:
        runs: the logged scalars, by name of the run.
        title: title of the figure.
        smooth: window of the running median, in log lines.
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
            # A run that is lost from its first line on has no other visible mark.
            loss.axvline(lost, color=color, ls=':', lw=1.3)
        for key, style in (('clip_threshold', ':'), ('grad_norm', '-'), ('grad_norm_post', '--')):
            if key == 'clip_threshold' and not scalars.bounds_the_norm():
                others.append(f'{name}: {scalars.series(key)[1][-1]:.3g}')
            elif _line(norm, scalars, key, color, style, smooth, positive=True):
                drawn.add(key)
        _line(share, scalars, 'clip_fraction', color, '-', smooth)
        steps = scalars.nonfinite_steps()
        skipped.plot(steps, np.full(len(steps), i), '|', color=color, ms=12, mew=1.5)
        label = f'{len(steps)}' if steps else 'none' if scalars.shows_nonfinite() else 'unknown'
        skipped.text(1.005, i, label, transform=skipped.get_yaxis_transform(), va='center')
    _finish(axes, list(runs), drawn)
    if others:
        text = 'not drawn, because they do not bound this norm: thresholds of '
        norm.set_title(text + ', '.join(others), fontsize=8, loc='left')
    if title:
        figure.suptitle(title)
    return figure


def _line(
    axes: Axes,
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


def _finish(axes: Sequence[Axes], names: list[str], drawn: set[str]) -> None:
    loss, norm, share, skipped = axes
    loss.set_ylabel('loss')
    _scale_loss(loss)
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
    if not any(np.size(line.get_xdata()) for line in share.lines):
        _note(share, 'no share was logged: the runs clip by MMEngine itself, or not at all')
    skipped.set_ylabel('not finite')
    skipped.set_yticks(range(len(names)), names, fontsize=8)
    skipped.set_ylim(len(names) - 0.5, -0.5)
    skipped.set_xlabel('iteration')
    for panel in axes:
        panel.grid(alpha=0.25, which='both' if panel is norm else 'major')


def _scale_loss(axes: Axes) -> None:
    """Make the axis logarithmic where a loss explodes, or it flattens all other curves."""
    values = np.concatenate(
        [
            np.asarray(line.get_ydata(), float)
            for line in axes.lines
            if line.get_transform() == axes.transData
        ]
        or [np.empty(0)]
    )
    if values.size and values.min() > 0 and values.max() > EXPLODED * np.median(values):
        axes.set_yscale('log')


def _note(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, ha='center', va='center', transform=axes.transAxes)
