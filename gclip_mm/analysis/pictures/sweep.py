"""The picture of a stability sweep: the metric over the learning rate, a line a rule."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..sweep_grid import DIVERGED, NONE, TRAINED, Results, group
from .backend import Axes, plt

#: From the palette of Okabe and Ito, which is safe for colour-blind readers; no clipping is black.
COLORS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#8C6D31', '#666666')
MARKERS = 'osD^vP*h'


def save_sweep(
    results: Results,
    rules: Sequence[str],
    lrs: Sequence[float],
    bound: float,
    metric: str,
    title: str,
    path: Path,
) -> None:
    """Draw the mean of each rule over the learning rate, and which trainings diverged.

    A bar reaches from the worst to the best seed.

    Args:
        results: the cells that are done.
        rules: the lines, in order.
        lrs: the learning rates, rising.
        bound: the metric from which a training counts; NaN: not drawn.
        metric: name of the metric.
        title: headline.
        path: PNG to write.
    """
    figure, (axes, below) = plt.subplots(
        2, 1, figsize=(9.5, 6.4), sharex=True, height_ratios=[5, 0.6 + 0.28 * len(rules)],
        layout='constrained',
    )  # fmt: skip
    # The rules stand side by side at each rate, so that their bars do not overlap. The shift is
    # limited, because a point far from its rate would be misread.
    step = min(np.log10(lrs[-1] / lrs[0]) / (len(lrs) - 1), 0.6) if len(lrs) > 1 else 0.6
    offsets = np.linspace(-0.13, 0.13, len(rules)) * step if len(rules) > 1 else [0.0]
    others = [r for r in rules if r != NONE]
    for row, (rule, offset) in enumerate(zip(rules, offsets, strict=True)):
        index = others.index(rule) if rule != NONE else 0
        color = 'black' if rule == NONE else COLORS[index % len(COLORS)]
        marker = '*' if rule == NONE else MARKERS[index % len(MARKERS)]
        groups = [(lr, group(results, rule, lr)) for lr in lrs]
        groups = [(lr, g) for lr, g in groups if g.metrics]
        if not groups:
            continue
        x = np.array([lr for lr, _ in groups]) * 10.0**offset
        mean = np.array([g.mean for _, g in groups])
        low = mean - [min(g.metrics) for _, g in groups]
        high = np.array([max(g.metrics) for _, g in groups]) - mean
        # Rounding can make a bar slightly negative, which Matplotlib rejects.
        bars = np.maximum([low, high], 0)
        axes.errorbar(
            x, mean, yerr=bars, color=color, marker=marker, ms=6, capsize=3, lw=1.6,
            ls='--' if rule == NONE else '-', label='no clipping' if rule == NONE else rule,
        )  # fmt: skip
        _outcomes(below, results, rule, row, lrs, color)
    if np.isfinite(bound):
        axes.axhline(bound, color='0.6', lw=1, ls=':')
        axes.annotate(
            'counts as trained', (1, bound), xycoords=('axes fraction', 'data'), ha='right',
            va='bottom', fontsize=8, color='0.4',
        )  # fmt: skip
    axes.set(xscale='log', ylabel=f'{metric}, mean and range of the seeds', title=title)
    # A little below 0, where diverged trainings lie.
    axes.set_ylim(-0.03 * axes.get_ylim()[1], None)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=9, ncols=2)
    below.set_yticks(range(len(rules)), ['no clipping' if r == NONE else r for r in rules])
    below.set_ylim(len(rules) - 0.4, -0.6)
    below.set_xticks(lrs, [f'{lr:g}' for lr in lrs])
    below.minorticks_off()
    below.set(xlabel='learning rate', title='each seed: ● trained to the end   × diverged')
    below.title.set_fontsize(9)
    below.grid(alpha=0.25, axis='x')
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _outcomes(
    axes: Axes, results: Results, rule: str, row: int, lrs: Sequence[float], color: str
) -> None:
    for lr in lrs:
        found = [o for c, o in results.items() if c.rule == rule and c.lr == lr]
        for i, outcome in enumerate(found):
            mark = {TRAINED: 'o', DIVERGED: 'x'}.get(outcome.status, '$?$')
            spread = 10.0 ** (0.025 * (i - (len(found) - 1) / 2))
            axes.plot([lr * spread], [row], ls='', marker=mark, color=color, ms=6, mew=1.8)
