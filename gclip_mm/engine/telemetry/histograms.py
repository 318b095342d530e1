"""Histograms of positive numbers on a logarithmic scale, written to a run's visualizer."""

from __future__ import annotations

from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from mmengine.visualization import Visualizer
from torch import Tensor

#: Decades that a histogram covers; values outside are counted in the first or last bin.
LOW, HIGH = -12, 4
BINS = 96


class LogHistogram(NamedTuple):
    """A histogram of ``log10(values)`` between ``LOW`` and ``HIGH``.

    Attributes:
        counts: (BINS,), number of values in each bin.
    """

    counts: np.ndarray

    @property
    def edges(self) -> np.ndarray:
        """(BINS + 1,), the bounds of the bins in log10."""
        return np.linspace(LOW, HIGH, BINS + 1)


def log_histograms(values: dict[str, Tensor]) -> dict[str, LogHistogram]:
    """Histograms of tensors with values of 0 or more; counted on the device, copied once."""
    if not values:
        return {}
    counts = torch.stack(
        [
            torch.histc(
                v.double().nan_to_num(nan=10.0**HIGH).clamp(10.0**LOW, 10.0**HIGH).log10(),
                BINS,
                LOW,
                HIGH,
            )
            for v in values.values()
        ]
    )
    return {name: LogHistogram(row) for name, row in zip(values, counts.cpu().numpy(), strict=True)}


def publish(
    visualizer: Visualizer, title: str, histograms: dict[str, LogHistogram], step: int
) -> None:
    """Write histograms to every backend of the visualizer.

    TensorBoard and Weights & Biases get one histogram per name, ``{title}.{name}``. Any other
    backend gets one image with a row per name.

    Args:
        visualizer: the visualizer of the run.
        title: the quantity.
        histograms: the histograms by name.
        step: the iteration.
    """
    picture = None
    for backend in visualizer._vis_backends.values():
        # By class name, so that a backend without its package raises its own error.
        kind = type(backend).__name__
        experiment = backend.experiment
        if hasattr(experiment, 'add_histogram_raw'):
            for name, histogram in histograms.items():
                _to_tensorboard(experiment, f'{title}.{name}', histogram, step)
        elif kind == 'WandbVisBackend':
            experiment.log(
                {
                    f'{title}.{name}': backend._wandb.Histogram(
                        np_histogram=(histogram.counts.tolist(), histogram.edges.tolist())
                    )
                    for name, histogram in histograms.items()
                }
            )
        else:
            if picture is None:
                picture = draw(title, histograms)
            backend.add_image(title, picture, step)


def _to_tensorboard(writer: Any, name: str, histogram: LogHistogram, step: int) -> None:
    edges, counts = histogram.edges, histogram.counts
    middles = (edges[1:] + edges[:-1]) / 2
    full = np.flatnonzero(counts)
    writer.add_histogram_raw(
        name,
        min=edges[full[0]] if len(full) else LOW,
        max=edges[full[-1] + 1] if len(full) else HIGH,
        num=int(counts.sum()),
        sum=float((counts * middles).sum()),
        sum_squares=float((counts * middles**2).sum()),
        bucket_limits=edges[1:].tolist(),
        bucket_counts=counts.tolist(),
        global_step=step,
    )


# -- the image: sizes in pixels ------------------------------------------------------------------
_ROW, _BIN, _LEFT, _TOP, _BOTTOM = 22, 6, 260, 34, 30
_FONT, _SIZE = cv2.FONT_HERSHEY_SIMPLEX, 0.45


def draw(title: str, histograms: dict[str, LogHistogram]) -> np.ndarray:
    """An image (H, W, 3) uint8 RGB with a row per name; darker bins hold more values."""
    height = _TOP + _ROW * len(histograms) + _BOTTOM
    width = _LEFT + _BIN * BINS + 20
    picture = np.full((height, width, 3), 255, np.uint8)
    _write(picture, f'log10 of {title}', _LEFT, 20)
    for k, (name, histogram) in enumerate(histograms.items()):
        y = _TOP + k * _ROW
        _write(picture, _shorten(name), 8, y + 15)
        # The square root keeps a bin with a hundredth of the values visible.
        share = np.sqrt(histogram.counts / max(histogram.counts.max(), 1.0))
        tone = cv2.applyColorMap((255 * (1 - share)).astype(np.uint8)[None], cv2.COLORMAP_VIRIDIS)
        tone = tone[..., ::-1].copy()
        tone[0, histogram.counts == 0] = 255
        strip = np.repeat(np.repeat(tone, _ROW - 4, 0), _BIN, 1)
        picture[y : y + _ROW - 4, _LEFT : _LEFT + strip.shape[1]] = strip
    bottom = _TOP + _ROW * len(histograms)
    for decade in range(LOW, HIGH + 1, 2):
        x = _LEFT + round((decade - LOW) / (HIGH - LOW) * BINS * _BIN)
        cv2.line(picture, (x, _TOP - 4), (x, bottom), (200, 200, 200), 1)
        _write(picture, str(decade), x - 10, bottom + 18)
    return picture


def _shorten(name: str, most: int = 30) -> str:
    return name if len(name) <= most else f'...{name[3 - most :]}'


def _write(picture: np.ndarray, text: str, x: int, y: int) -> None:
    cv2.putText(picture, text, (x, y), _FONT, _SIZE, (0, 0, 0), 1, cv2.LINE_AA)
