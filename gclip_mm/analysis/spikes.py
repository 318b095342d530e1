"""Reads ``spikes.jsonl`` and ranks the images by the number of spikes that they were in."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple


class SpikesError(Exception):
    """A ``spikes.jsonl`` is missing or malformed; the message is one line."""


class SpikeImage(NamedTuple):
    """An image in a spike's batch.

    Attributes:
        path: of the file, or None.
        img_id: in the data set, or None.
        rank: the process whose batch held the image.
    """

    path: str | None
    img_id: Any
    rank: int

    @property
    def name(self) -> str:
        """The path or, without one, the id."""
        return self.path if self.path is not None else f'image {self.img_id}'


class Spike(NamedTuple):
    """A line of ``spikes.jsonl``.

    Attributes:
        iter: the iteration, from 1.
        cause: ``norm``, ``loss``, ``clip_coef``, ``nonfinite`` or ``loss_scale``.
        grad_norm: before clipping; may be inf or NaN.
        median: of the earlier norms (for ``loss``: losses), or None.
        modules: name and gradient norm, the largest first.
        losses: each term, of the process with the largest one.
        images: of every process.
        optimizer: name of the member, with an ``OptimWrapperDict``.
        loss_term: for ``loss``, the outlying term.
    """

    iter: int
    cause: str
    grad_norm: float
    median: float | None
    modules: list[tuple[str, float]]
    losses: dict[str, float]
    images: list[SpikeImage]
    optimizer: str = ''
    loss_term: str = ''

    @property
    def size(self) -> float:
        """The norm or loss relative to the median; inf if it is not finite."""
        value = self.losses.get(self.loss_term, 0.0) if self.loss_term else self.grad_norm
        return value / (self.median or 1.0) if math.isfinite(value) else math.inf


def read_spikes(path: str | Path) -> list[Spike]:
    """The spikes of a run, by iteration.

    If a resumed run trained an iteration again, the later line counts.

    Args:
        path: a ``spikes.jsonl``, or the work_dir that holds one.

    Raises:
        SpikesError: the file is missing, or a line of it is malformed.
    """
    path = Path(path)
    if path.is_dir():
        path = path / 'spikes.jsonl'
    if not path.is_file():
        raise SpikesError(
            f'{path} is not there: GClipSpikeHook writes it into the work_dir at the first spike. '
            'Either the run had no spike, or it was trained without --spikes'
        )
    spikes: dict[tuple[int, str], Spike] = {}
    rows = path.read_text().splitlines()
    for number, row in enumerate(rows, 1):
        try:
            spike = _parse(json.loads(row))
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            if number == len(rows) and isinstance(error, json.JSONDecodeError):
                continue  # the run was killed while writing
            raise SpikesError(f'{path}, line {number} is malformed: {error!r}') from None
        spikes[spike.iter, spike.optimizer] = spike
    return sorted(spikes.values(), key=lambda spike: spike.iter)


def _parse(line: dict[str, Any]) -> Spike:
    term = line.get('loss_term', 'loss')
    worst = max(line['ranks'], key=lambda entry: _size(entry['losses'].get(term, 0.0)))
    return Spike(
        line['iter'],
        line['cause'],
        float(line['grad_norm']),
        line['median'],
        [(module['name'], float(module['grad_norm'])) for module in line['modules']],
        {key: float(value) for key, value in worst['losses'].items()},
        [
            SpikeImage(image.get('img_path'), image.get('img_id'), entry['rank'])
            for entry in line['ranks']
            for image in entry['images']
        ],
        line.get('optimizer', ''),
        line.get('loss_term', ''),
    )


def _size(loss: float | str) -> float:
    loss = float(loss)
    return float('inf') if loss != loss else loss


def rank_images(spikes: list[Spike]) -> list[tuple[SpikeImage, int]]:
    """The images of all spikes with the number of spikes each was in, highest first.

    A batch also holds innocent images, but different ones in each spike.
    """
    counts: dict[str, int] = {}
    images: dict[str, SpikeImage] = {}
    for spike in spikes:
        for name, image in {image.name: image for image in spike.images}.items():
            counts[name] = counts.get(name, 0) + 1
            images.setdefault(name, image)
    order = sorted(counts, key=lambda name: -counts[name])
    return [(images[name], counts[name]) for name in order]
