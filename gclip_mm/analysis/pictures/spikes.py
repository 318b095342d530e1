"""A sheet for each gradient spike: the images of its batch with their boxes."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path

import numpy as np

from ..annotations import Annotation, AnnotationIndex, box_faults, read_pixels
from ..spikes import Spike, SpikeImage
from .backend import Axes, Figure, plt

#: Colours of the boxes: without a fault, ignored in training, with a fault.
SOUND, IGNORED, FAULTY = '#00A36C', '#999999', '#E3170A'
COLUMNS = 4


class Looked(dict[SpikeImage, tuple[np.ndarray | None, Annotation | None, list[str]]]):
    """Cache of images: pixels (H, W, 3) RGB or None, annotation or None, and faults in words."""

    def __init__(self, index: AnnotationIndex) -> None:
        super().__init__()
        self._index = index

    def __missing__(
        self, image: SpikeImage
    ) -> tuple[np.ndarray | None, Annotation | None, list[str]]:
        annotation = self._index.find(image.path, image.img_id)
        path = image.path if annotation is None else annotation.path
        pixels, fault = (None, 'cannot be read') if path is None else read_pixels(path)
        faults = [fault]
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


def draw_spike(spike: Spike, looked: Looked, counts: dict[str, int]) -> Figure:
    """The sheet of a spike: its images with their boxes, below the :func:`headline`.

    Args:
        spike: what to draw.
        looked: the cache of images.
        counts: in how many spikes each image was, by name.
    """
    columns = min(COLUMNS, max(len(spike.images), 1))
    rows = max(math.ceil(len(spike.images) / columns), 1)
    figure, axes = plt.subplots(
        rows, columns, figsize=(4 * columns, 3.5 * rows + 1), layout='constrained', squeeze=False
    )
    for panel in axes.flat:
        panel.set_axis_off()
    for panel, image in zip(axes.flat, spike.images, strict=False):
        _draw_image(panel, image, looked, counts[image.name])
    # The number of characters that fit at this font size.
    figure.suptitle(headline(spike, 48 * columns), fontsize=11)
    return figure


def _draw_image(panel: Axes, image: SpikeImage, looked: Looked, count: int) -> None:
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
    # A box outside the image must not shrink the image.
    panel.set_xlim(-0.5, width - 0.5)
    panel.set_ylim(height - 0.5, -0.5)


def headline(spike: Spike, width: int = 110) -> str:
    """Cause, losses and largest modules of a spike: three lines, wrapped at ``width``."""
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
    """The images that were in most of the spikes, with their faults."""
    lines = [f'{total} spikes; the images that were in most of them:']
    for image, count in ranking[:most]:
        faults = looked[image][2]
        what = f'  <- {"; ".join(faults[:3])}' if faults else ''
        lines.append(f'{count:6d}  {image.name}{what}')
    if len(ranking) > most:
        lines.append(f'        and {len(ranking) - most} more images')
    return '\n'.join(lines)
