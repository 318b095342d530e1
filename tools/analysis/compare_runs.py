"""Runs side by side in one picture: loss, gradient norm and detections.

    python tools/analysis/compare_runs.py \\
        --run 'without clipping=work_dirs/bccd_none' --run 'with clipping=work_dirs/bccd_norm' \\
        --out before_after.png
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# A checkout works without being installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np  # noqa: E402
from run_files import (  # noqa: E402
    RunFilesError,
    Scalars,
    find_checkpoint,
    find_config,
    main_metric,
    read_scalars,
)
from run_pictures import detections, draw_loss, paint, plt  # noqa: E402

COLORS = ('#d1495b', '#00798c', '#edae49', '#30638e', '#6a4c93')


@dataclass(frozen=True)
class Run:
    label: str
    work_dir: Path
    scalars: Scalars

    def outcome(self) -> str:
        metric = main_metric(self.scalars)
        diverged = self.scalars.lost_from()
        if diverged is None:
            return f'mAP {metric:.2f}' if metric is not None else 'not validated'
        # Where nothing is detected at all, MMDetection reports no metric.
        found = f'mAP {metric:.2f}' if metric is not None else 'no metric'
        return f'NaN from step {diverged}, {found}'


def named_run(text: str) -> tuple[str, Path]:
    label, separator, path = text.partition('=')
    if not separator or not label or not path:
        raise argparse.ArgumentTypeError(f'{text!r} is not LABEL=WORK_DIR')
    return label, Path(path)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Draw runs of the same data set side by side.')
    parser.add_argument(
        '--run',
        dest='runs',
        type=named_run,
        action='append',
        required=True,
        metavar='LABEL=WORK_DIR',
        help=f'a run; give it two to {len(COLORS)} times',
    )
    parser.add_argument('--out', type=Path, default=Path('compare_runs.png'), help='(%(default)s)')
    parser.add_argument('--title', default='', help='headline of the picture')
    parser.add_argument('--num-images', type=int, default=2, help='images to draw (%(default)s)')
    parser.add_argument(
        '--score-thr', type=float, default=0.5, help='draw detections above it (%(default)s)'
    )
    parser.add_argument('--device', default='cpu', help='cpu, cuda:0, ... (%(default)s)')
    args = parser.parse_args(argv)
    if not 2 <= len(args.runs) <= len(COLORS):
        parser.error(f'give --run two to {len(COLORS)} times, got {len(args.runs)}')
    if args.num_images < 1:
        parser.error(f'--num-images must be at least 1, got {args.num_images}')
    return args


def draw_curves(axes: tuple[plt.Axes, plt.Axes], runs: list[Run]) -> None:
    top, bottom = axes
    for run, color in zip(runs, COLORS, strict=False):
        draw_loss(top, run.scalars, color, run.label)
        # The norm of a run that does not clip is not logged by MMEngine; then there is no line.
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
    top.legend(fontsize=8)
    if bottom.lines:
        bottom.set_yscale('log')
        bottom.legend(fontsize=8)
    bottom.set_xlabel('step')
    bottom.set_ylabel('gradient norm')
    bottom.grid(alpha=0.25, which='both')


def draw(runs: list[Run], args: argparse.Namespace) -> None:
    found: list[tuple[list[np.ndarray], list[Any], dict[str, Any]]] = [
        detections(
            find_config(r.work_dir), find_checkpoint(r.work_dir), args.num_images, args.device
        )
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
    left, right = fig.subfigures(1, 2, width_ratios=[5.2, tile * columns])
    draw_curves(left.subplots(2, 1, sharex=True), runs)
    axes = right.subplots(rows, columns, squeeze=False)
    for row in range(rows):
        axes[row, 0].imshow(paint(images[row], samples[row], meta, True, args.score_thr))
        for column, (_, predicted, _) in enumerate(found, start=1):
            tile_image = paint(images[row], predicted[row], meta, False, args.score_thr)
            axes[row, column].imshow(tile_image)
    axes[0, 0].set_title('ground truth', fontsize=10)
    for column, run in enumerate(runs, start=1):
        axes[0, column].set_title(f'{run.label}\n{run.outcome()}', fontsize=10)
    for ax in axes.flat:
        ax.axis('off')
    if args.title:
        fig.suptitle(args.title)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(args.out, dpi=110)
    plt.close(fig)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        runs = [Run(label, path, read_scalars(path)) for label, path in args.runs]
        draw(runs, args)
    except RunFilesError as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    for run in runs:
        print(f'{run.label}: {run.outcome()}')
    print(args.out)
    return 0


if __name__ == '__main__':
    sys.exit(main())
