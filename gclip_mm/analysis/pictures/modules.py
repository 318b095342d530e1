"""Which modules clipping held back, and which units most: from the files of GClipMonitorHook."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..run_files import RunFilesError, read_rows
from .backend import Figure, plt

_SHARE = 'module_clip_fraction.'
_FILES = 'module_scalars.json', 'clipped_units.json'
#: How many parameters are named in the picture.
MOST_UNITS = 12


@dataclass(frozen=True)
class ModuleLog:
    """What GClipMonitorHook has written in a run.

    Attributes:
        steps: the S measured iterations.
        modules: names of the M modules.
        shares: (M, S), share of clipped units; NaN where a module was not measured.
        held: by parameter: the smallest shares kept in the steps where it was held back most.
    """

    steps: list[int]
    modules: list[str]
    shares: np.ndarray
    held: dict[str, list[float]]

    @property
    def ranked(self) -> list[tuple[str, float, int]]:
        """Parameter, median of the shares kept, and number of steps; most often held back first."""
        rows = [(name, float(np.median(kept)), len(kept)) for name, kept in self.held.items()]
        return sorted(rows, key=lambda row: (-row[2], row[1]))


def read_modules(path: Path) -> ModuleLog:
    """Read the files of the monitor from a work_dir, or from a timestamp folder of it.

    Raises:
        RunFilesError: the run had no GClipMonitorHook, or it measured no step.
    """
    rows, units = (read_rows(path, name) for name in _FILES)
    if not rows:
        raise RunFilesError(
            f'{path} has no {_FILES[0]} beside its scalars.json: train with '
            "custom_hooks=[dict(type='GClipMonitorHook')]"
        )
    modules = list(dict.fromkeys(k[len(_SHARE) :] for r in rows for k in r if k.startswith(_SHARE)))
    shares = np.array([[row.get(_SHARE + name, np.nan) for row in rows] for name in modules])
    held: dict[str, list[float]] = {}
    for row in units:
        for name, unit, kept in row['units']:
            held.setdefault(f'{name}[{unit}]', []).append(kept)
    return ModuleLog([row['step'] for row in rows], modules, shares, held)


def draw_modules(log: ModuleLog, title: str = '') -> Figure:
    """The figure: the clipped share of each module over the steps, and the units held back most."""
    height = 1.8 + 0.25 * len(log.modules)
    ranked = log.ranked[:MOST_UNITS][::-1]
    figure, (top, bottom) = plt.subplots(
        2,
        1,
        figsize=(9, height + 1.5 + 0.3 * max(len(ranked), 1)),
        height_ratios=(height, 1.2 + 0.3 * max(len(ranked), 1)),
        layout='constrained',
    )
    image = top.imshow(log.shares, aspect='auto', vmin=0, vmax=1, cmap='viridis')
    ticks = np.unique(np.linspace(0, len(log.steps) - 1, 8).round().astype(int))
    top.set_xticks(ticks, [str(log.steps[i]) for i in ticks])
    top.set_yticks(range(len(log.modules)), log.modules, fontsize=8)
    top.set_xlabel('iteration')
    top.set_title('share of clipped units', loc='left', fontsize=10)
    figure.colorbar(image, ax=top, pad=0.01)
    if ranked:
        names, kept, counts = zip(*ranked, strict=True)
        bottom.barh(range(len(ranked)), kept, color='#0072B2')
        bottom.set_yticks(range(len(ranked)), names, fontsize=8)
        for i, (value, count) in enumerate(zip(kept, counts, strict=True)):
            bottom.text(value, i, f' {value:.2g}, in {count} steps', va='center', fontsize=8)
        # Shares differ by orders of magnitude.
        bottom.set_xscale('log')
        bottom.set_xlim(max(min(kept), 1e-6) / 3, 3)
        bottom.set_xlabel('share of its gradient, or of its movement, that the unit kept (median)')
    else:
        bottom.text(0.5, 0.5, 'no unit was clipped', ha='center', transform=bottom.transAxes)
        bottom.set_axis_off()
    bottom.set_title('units most often held back', loc='left', fontsize=10)
    if title:
        figure.suptitle(title)
    return figure
