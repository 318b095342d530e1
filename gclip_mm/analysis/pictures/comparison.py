"""Runs side by side in one picture: loss, gradient norm and detections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..run_files import Scalars, find_checkpoint, find_config, main_metric
from .backend import Axes, plt
from .run import detections, draw_loss, paint

COLORS = ('#d1495b', '#00798c', '#edae49', '#30638e', '#6a4c93')


@dataclass(frozen=True)
class Run:
    """A run to draw.

    Attributes:
        label: its name in the picture.
        work_dir: its work_dir.
        scalars: what it logged.
    """

    label: str
    work_dir: Path
    scalars: Scalars

    def outcome(self) -> str:
        """The last mAP, and from which step the run is lost."""
        metric = main_metric(self.scalars)
        diverged = self.scalars.lost_from()
        if diverged is None:
            return f'mAP {metric:.2f}' if metric is not None else 'not validated'
        # MMDetection reports no metric if nothing is detected.
        found = f'mAP {metric:.2f}' if metric is not None else 'no metric'
        return f'NaN from step {diverged}, {found}'


def draw_curves(axes: Sequence[Axes], runs: list[Run]) -> None:
    """Draw the losses into the first panel and the gradient norms into the second."""
    top, bottom = axes
    for run, color in zip(runs, COLORS, strict=False):
        draw_loss(top, run.scalars, color, run.label)
        # MMEngine logs no norm for a run that does not clip; such a run has no line.
        members = {f' {name}': run.scalars.member(name) for name in run.scalars.members()}
        for i, (member, scalars) in enumerate((members or {'': run.scalars}).items()):
            for key, style, name in (
                ('grad_norm', '-', ''),
                ('grad_norm_post', '--', ' (clipped)'),
            ):
                steps, values = map(np.asarray, scalars.series(key))
                keep = np.isfinite(values) & (values > 0)
                if keep.any():
                    bottom.plot(
                        steps[keep], values[keep], style, color=color, ms=3,
                        marker='^sDv'[i % 4] if members else None, label=run.label + member + name,
                    )  # fmt: skip
    _limit_loss(top, runs)
    top.legend(fontsize=8)
    if bottom.lines:
        bottom.set_yscale('log')
        bottom.legend(fontsize=8)
    bottom.set_xlabel('step')
    bottom.set_ylabel('gradient norm')
    bottom.grid(alpha=0.25, which='both')


def _limit_loss(axes: Axes, runs: list[Run]) -> None:
    """Let the losses of lost runs leave the panel, where the other runs would become flat lines."""
    kept = [run.scalars.series('loss')[1] for run in runs if run.scalars.lost_from() is None]
    finite = [loss for series in kept for loss in series if np.isfinite(loss)]
    if finite and len(kept) < len(runs):
        margin = 0.1 * (max(finite) - min(finite))
        axes.set_ylim(min(finite) - margin, max(finite) + 2 * margin)


def save_comparison(
    runs: list[Run], path: Path, title: str, num_images: int, score_thr: float, device: str
) -> None:
    """Draw the curves of the runs, and their detections beside the ground truth.

    Args:
        runs: two or more runs of the same data set.
        path: PNG to write.
        title: headline; '' for none.
        num_images: number of images.
        score_thr: detections below this score are not drawn.
        device: of the detector, such as ``cpu``.
    """
    found: list[tuple[list[np.ndarray], list[Any], dict[str, Any]]] = [
        detections(find_config(r.work_dir), find_checkpoint(r.work_dir), num_images, device)
        for r in runs
    ]
    images, samples, meta = found[0]
    height, width = images[0].shape[:2]
    columns = 1 + len(runs)
    rows = len(images)
    tile = 3.0
    fig = plt.figure(
        figsize=(5.2 + tile * columns, max(rows * tile * height / width, 4.2) + 0.6),
        layout='constrained',
    )
    panels: Any = fig.subfigures(1, 2, width_ratios=[5.2, tile * columns])
    left, right = panels
    draw_curves(left.subplots(2, 1, sharex=True), runs)
    axes = right.subplots(rows, columns, squeeze=False)
    for row in range(rows):
        axes[row, 0].imshow(paint(images[row], samples[row], meta, True, score_thr))
        for column, (_, predicted, _) in enumerate(found, start=1):
            tile_image = paint(images[row], predicted[row], meta, False, score_thr)
            axes[row, column].imshow(tile_image)
    axes[0, 0].set_title('ground truth', fontsize=10)
    for column, run in enumerate(runs, start=1):
        axes[0, column].set_title(f'{run.label}\n{run.outcome()}', fontsize=10)
    for ax in axes.flat:
        ax.axis('off')
    if title:
        fig.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, dpi=110)
    plt.close(fig)
