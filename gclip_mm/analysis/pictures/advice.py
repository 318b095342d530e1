"""The distributions of the gradient, with the advised thresholds."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...engine.telemetry.module_probe import cut_name
from ..advice import Advice
from ..gradient_stats import GradientStats, octave_sizes
from ..replay import Effect
from .backend import Axes, plt

BAR, LINE, LOSS, AUTO = '#0072B2', '#D55E00', '#999999', '#009E73'


def save_distributions(
    stats: GradientStats, advices: list[Advice], auto: Effect, path: Path, title: str
) -> None:
    """Draw the norms of the steps, modules, units and elements with the advised thresholds.

    Args:
        stats: the recorded steps.
        advices: the advised rules.
        auto: what ``Auto`` does to the steps that have a gradient.
        path: PNG to write.
        title: headline.
    """
    by_name = {advice.name: advice.clip_grad for advice in advices}
    figure, axes = plt.subplots(2, 2, figsize=(13, 9), layout='constrained')
    _steps(axes[0, 0], stats, by_name['norm']['max_norm'], auto)
    _modules(axes[0, 1], stats)
    _units(axes[1, 0], stats, by_name['agc']['clip_factor'])
    _elements(axes[1, 1], stats, by_name['value']['clip_value'])
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _steps(axes: Axes, stats: GradientStats, max_norm: float, auto: Effect) -> None:
    steps = np.arange(1, len(stats.norm) + 1)
    axes.plot(steps, stats.norm, '.-', color=BAR, label='gradient norm')
    axes.axhline(max_norm, color=LINE, ls='--', label=f'max_norm={max_norm:g}')
    if not auto.of_updates:
        # Steps without a gradient are not replayed.
        axes.plot(steps[stats.norm > 0], auto.after, '.-', color=AUTO, label='norm after Auto')
    axes.set_yscale('log')
    axes.set(title='Global norm', xlabel='recorded step', ylabel='gradient norm')
    loss = axes.twinx()
    loss.plot(steps, stats.loss, color=LOSS, lw=1, label='loss')
    loss.set_ylabel('loss', color=LOSS)
    loss.set_ylim(bottom=0)
    handles = axes.get_legend_handles_labels()[0] + loss.get_legend_handles_labels()[0]
    axes.legend(handles=handles, fontsize=8)
    axes.grid(alpha=0.25)


def _modules(axes: Axes, stats: GradientStats, depth: int = 2) -> None:
    groups: dict[str, np.ndarray] = {}
    for i, name in enumerate(stats.names):
        key = cut_name(name.rpartition('.')[0] or '(root)', depth)
        groups[key] = np.hypot(groups.get(key, 0.0), stats.grad[:, i])
    names = list(groups)[::-1]
    for y, name in enumerate(names):
        marks = np.percentile(np.maximum(groups[name], 1e-12), [0, 25, 50, 75, 100])
        axes.plot(marks[[0, 4]], [y, y], color=BAR, lw=1)
        axes.plot(marks[[1, 3]], [y, y], color=BAR, lw=6, solid_capstyle='butt')
        axes.plot(marks[2], y, '|', color=LINE, ms=9, mew=2)
    axes.set_yticks(range(len(names)), names)
    axes.set_xscale('log')
    axes.set(title='Norm by module: range, middle half, median', xlabel='gradient norm')
    axes.tick_params(axis='y', labelsize=8)
    axes.grid(alpha=0.25, axis='x')


def _units(axes: Axes, stats: GradientStats, factor: float) -> None:
    ratios = stats.unit_ratio[stats.unit_ratio > 0]
    low, high = np.floor(np.log10(np.percentile(ratios, 0.1))), np.ceil(np.log10(ratios.max()))
    axes.hist(np.clip(ratios, 10.0**low, None), list(np.logspace(low, high, 80)), color=BAR)
    _mark(axes, factor, f'clip_factor={factor:g}')
    axes.set(
        title='Units: gradient relative to the weights',
        xlabel='norm of gradient / norm of weights, times the rate multiplier',
        ylabel='units, over all steps',
    )


def _elements(axes: Axes, stats: GradientStats, clip_value: float) -> None:
    counts, sizes = stats.elements.sum(axis=(0, 1)), octave_sizes()
    total = np.cumsum(counts) / counts.sum()
    first, last = np.searchsorted(total, 1e-3), np.flatnonzero(counts).max()
    part = slice(first, last + 1)
    axes.bar(sizes[part], counts[part], width=0.36 * sizes[part], color=BAR)
    _mark(axes, clip_value, f'clip_value={clip_value:g}')
    axes.set_yscale('log')
    axes.set(title='Elements', xlabel='absolute value', ylabel='elements, over all steps')


def _mark(axes: Axes, at: float, label: str) -> None:
    axes.axvline(at, color=LINE, ls='--', label=label)
    axes.set_xscale('log')
    axes.legend(fontsize=8)
    axes.grid(alpha=0.25)
