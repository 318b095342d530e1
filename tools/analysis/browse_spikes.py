"""Draws the images behind the spikes of a run with their boxes, so that a bad one can be seen.

    python tools/analysis/browse_spikes.py configs/bccd/faster-rcnn_tiny_bccd.py work_dirs/bccd

Reads ``spikes.jsonl`` (written by ``GClipSpikeHook``), draws one sheet for each spike, the largest
first, and lists the images that were in most of the spikes. A batch holds innocent images too: look
for the one that turns up again and again, and for what is marked in red. Boxes are those of the
config's training data set, on the image as it is on the disk, before any augmentation.
"""

from __future__ import annotations

import argparse
import math
import sys
import textwrap
from pathlib import Path

# A checkout works without being installed, and before an installed copy.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import matplotlib  # noqa: E402

matplotlib.use('Agg')  # no display is needed, nor looked for

import cv2  # noqa: E402
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
from mmengine.config import DictAction  # noqa: E402
from mmengine.utils import ProgressBar  # noqa: E402

import gclip_mm  # noqa: E402, F401  registers what a config of this package names
from gclip_mm.analysis.annotations import Annotation, AnnotationIndex, box_faults, pixel_fault  # noqa: E402
from gclip_mm.analysis.quiet import quiet_logs  # noqa: E402
from gclip_mm.analysis.spikes import Spike, SpikeImage, SpikesError, rank_images, read_spikes  # noqa: E402
from gclip_mm.engine.launch import LaunchError, explain_missing_data, load_config  # noqa: E402

SOUND, IGNORED, FAULTY = '#00A36C', '#999999', '#E3170A'
COLUMNS = 4


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Draw the images behind the spikes of a run, with their boxes.'
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
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='override settings of the config, as key=value',
    )
    args = parser.parse_args(argv)
    for name in ('limit', 'list'):
        if getattr(args, name) < 1:
            parser.error(f'--{name} must be at least 1, got {getattr(args, name)}')
    return args


class Looked(dict):
    """Images by name, with annotation and faults; each is read once."""

    def __init__(self, index: AnnotationIndex) -> None:
        super().__init__()
        self._index = index

    def __missing__(self, image: SpikeImage) -> tuple[np.ndarray | None, Annotation | None, list]:
        annotation = self._index.find(image.path, image.img_id)
        path = image.path if annotation is None else annotation.path
        pixels = None if path is None else cv2.imread(path)
        faults = []
        if pixels is None:
            faults.append('cannot be read')
        else:
            pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
            faults.append(pixel_fault(pixels))
        if annotation is None:
            faults.append('is not in the data set of the config')
        elif pixels is not None:
            marks = box_faults(annotation.boxes, *pixels.shape[:2])
            faults += [
                f'{label}: {fault}'
                for label, fault in zip(annotation.labels, marks, strict=True)
                if fault
            ]
        self[image] = pixels, annotation, [fault for fault in faults if fault]
        return self[image]


def draw_spike(spike: Spike, looked: Looked, counts: dict[str, int]) -> plt.Figure:
    """The sheet of a spike: its images with their boxes, and what is known of it above them."""
    columns = min(COLUMNS, max(len(spike.images), 1))
    rows = max(math.ceil(len(spike.images) / columns), 1)
    figure, axes = plt.subplots(
        rows, columns, figsize=(4 * columns, 3.5 * rows + 1), layout='constrained', squeeze=False
    )
    for panel in axes.flat:
        panel.set_axis_off()
    for panel, image in zip(axes.flat, spike.images, strict=False):
        _draw_image(panel, image, looked, counts[image.name])
    # As many characters of that size as there is room for.
    figure.suptitle(headline(spike, 48 * columns), fontsize=11)
    return figure


def _draw_image(panel: plt.Axes, image: SpikeImage, looked: Looked, count: int) -> None:
    pixels, annotation, faults = looked[image]
    name = Path(image.path).name if image.path else image.name
    title = f'{name} (in {count} spike{"s" if count > 1 else ""})'
    if faults:
        more = f' and {len(faults) - 2} more' if len(faults) > 2 else ''
        title += '\n' + '; '.join(faults[:2]) + more
    panel.set_title(title, fontsize=8, color=FAULTY if faults else 'black', wrap=True)
    if pixels is None:
        panel.text(0.5, 0.5, 'no image', ha='center', va='center', transform=panel.transAxes)
        return
    height, width = pixels.shape[:2]
    panel.imshow(pixels)
    if annotation is not None:
        marks = box_faults(annotation.boxes, height, width)
        for box, label, mark, ignored in zip(
            annotation.boxes, annotation.labels, marks, annotation.ignored, strict=True
        ):
            if not np.isfinite(box).all():
                continue
            color = FAULTY if mark else IGNORED if ignored else SOUND
            x, y, w, h = box[0], box[1], box[2] - box[0], box[3] - box[1]
            panel.add_patch(
                plt.Rectangle((x, y), w, h, fill=False, ec=color, lw=2.5 if mark else 1)
            )
            if mark:
                at = np.clip(x, 0, width), np.clip(y, 0, height)
                panel.plot(*at, 'x', color=color, ms=9, mew=2)
                panel.text(*at, f'  {label}', color=color, fontsize=8, va='top', clip_on=True)
    # A box of any size must not shrink the image.
    panel.set_xlim(-0.5, width - 0.5)
    panel.set_ylim(height - 0.5, -0.5)


def headline(spike: Spike, width: int = 110) -> str:
    """What is known of a spike, in three lines, of which long ones are broken."""
    usual = '' if spike.median is None else f' (usually {spike.median:.3g})'
    what = f'gradient norm {spike.grad_norm:.4g}'
    if spike.loss_term:
        value = spike.losses.get(spike.loss_term, math.nan)
        what = f'{spike.loss_term} {value:.4g}{usual}, {what}'
    else:
        what += usual
    who = f', optimizer {spike.optimizer}' if spike.optimizer else ''
    modules = ', '.join(f'{name} {norm:.3g}' for name, norm in spike.modules[:3])
    losses = ', '.join(f'{name} {value:.3g}' for name, value in spike.losses.items())
    lines = [
        f'iteration {spike.iter}{who}: {spike.cause}, {what}',
        losses,
        f'largest in {modules or "unknown"}',
    ]
    return '\n'.join(textwrap.fill(line, width) for line in lines)


def listing(ranking: list[tuple[SpikeImage, int]], total: int, looked: Looked, most: int) -> str:
    """The images that were in most of the spikes, with what is wrong with them."""
    lines = [f'{total} spikes; the images that were in most of them:']
    for image, count in ranking[:most]:
        faults = looked[image][2]
        what = f'  <- {"; ".join(faults[:3])}' if faults else ''
        lines.append(f'{count:6d}  {image.name}{what}')
    if len(ranking) > most:
        lines.append(f'        and {len(ranking) - most} more images')
    return '\n'.join(lines)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        spikes = read_spikes(args.spikes)
        cfg = load_config(args.config, args.cfg_options, None, 'none')
        if args.iter:
            missing = sorted(set(args.iter) - {spike.iter for spike in spikes})
            if missing:
                raise SpikesError(f'--iter: no spike at {", ".join(map(str, missing))}')
        with explain_missing_data(cfg), quiet_logs():
            index = AnnotationIndex(cfg)
    except (SpikesError, LaunchError, ValueError) as error:
        print(f'browse_spikes.py: error: {error}', file=sys.stderr)
        return 1
    if not spikes:
        print('No spikes.')
        return 0
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
    for spike in chosen:
        figure = draw_spike(spike, looked, counts)
        name = f'{spike.optimizer}_' if spike.optimizer else ''
        figure.savefig(out / f'{name}iter_{spike.iter:06d}.png', dpi=90)
        plt.close(figure)
        bar.update()
    print(file=sys.stderr)
    print(listing(ranking, len(spikes), looked, args.list))
    print(f'Saved {len(chosen)} sheets to {out}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
