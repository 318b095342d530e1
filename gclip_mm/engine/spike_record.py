"""What is kept of each step until it is known whether it was a spike, and what is written then."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.dist import all_reduce, get_rank, get_world_size
from torch import Tensor

from ..clipping.base import Measure
from ..clipping.observer import StepObserver, parameter_norms
from ..clipping.routing import GradView, ParamInfo
from .module_probe import module_name
from .spike_detector import SpikeDetector, Verdict

#: Modules named in a line.
_MOST_MODULES = 10


class BatchRecord:
    """What is kept of an iteration: the images, the losses, and the batch itself on request."""

    def __init__(self, images: list[dict], data: Any) -> None:
        self.images = images
        self.data = data
        self.losses: dict[str, Tensor | float] = {}


class StepRecord(NamedTuple):
    """What is kept of a step of the optimizer.

    Attributes:
        iter: its last iteration, from 1.
        epoch: from 1.
        batches: its iterations' data.
        record: (6,) the engine's record (:mod:`gclip_mm.clipping.stats`).
        infos: the N parameters that had a gradient.
        norms: (N,) their norms before clipping; None where a loss scaler kept the step back.
    """

    iter: int
    epoch: int
    batches: list[BatchRecord]
    record: Tensor
    infos: list[ParamInfo]
    norms: Tensor | None

    def loss(self) -> Tensor:
        """0-d float64, mean loss of the step's batches; NaN where it has none."""
        losses = [batch.losses['loss'] for batch in self.batches if 'loss' in batch.losses]
        if not losses:
            return torch.tensor(math.nan, dtype=torch.float64)
        return torch.stack([torch.as_tensor(x, dtype=torch.float64) for x in losses]).mean()


class _StepMeasurer(StepObserver):
    """Keeps, on the device, what a step's engine has measured."""

    def __init__(self) -> None:
        self.infos: list[ParamInfo] = []
        self.norms: Tensor | None = None
        self.norm: Tensor | None = None
        self.record: Tensor | None = None

    def before_clip(
        self,
        views: list[GradView],
        measures: list[Measure],
        norm: Tensor,
        scale: Tensor | None,
    ) -> None:
        parts = [parameter_norms(v, m).double() for v, m in zip(views, measures, strict=True)]
        norms = parts[0] if len(parts) == 1 else torch.cat(parts)
        self.norms = norms if scale is None else norms / scale.to(norms.device)
        self.infos = views[0].infos if len(views) == 1 else [i for v in views for i in v.infos]
        self.norm = norm

    def on_record(self, record: Tensor) -> None:
        self.record = record


class StepBuffer:
    """The steps of one optimizer that have not been looked at."""

    def __init__(self, name: str, detector: SpikeDetector, loss_detector: SpikeDetector) -> None:
        self.name = name
        self.detector = detector
        self.loss_detector = loss_detector
        self.observer = _StepMeasurer()
        self._batches: list[BatchRecord] = []
        self._when = (0, 0)
        self._steps: list[StepRecord] = []

    def begin(self, iteration: int, epoch: int, batch: BatchRecord) -> None:
        """Note an iteration's data; ``iteration`` and ``epoch`` from 1."""
        self._when = (iteration, epoch)
        self._batches.append(batch)

    def end(self, losses: dict[str, Tensor | float]) -> None:
        """Note an iteration's losses; it is over, or has been broken off by an error."""
        if self._batches:
            self._batches[-1].losses = losses
        seen = self.observer
        record = seen.record
        if record is None and seen.norm is not None:
            # Broken off between measuring and clipping, as nonfinite='raise' does.
            nan = seen.norm.new_full((5,), math.nan, dtype=torch.float64)
            record = torch.cat([seen.norm.double().reshape(1), nan])
        if record is None:
            return
        self._steps.append(StepRecord(*self._when, self._batches, record, seen.infos, seen.norms))
        self._batches = []
        seen.record = seen.norm = seen.norms = None

    def judge(self, agree: bool = False) -> list[tuple[StepRecord, np.ndarray, Verdict]]:
        """The spikes among the steps, which are then forgotten; one read of the device."""
        steps, self._steps = self._steps, []
        if not steps:
            return []
        device = steps[0].record.device
        losses = torch.stack([step.loss().to(device) for step in steps])
        rows = torch.cat([torch.stack([step.record for step in steps]), losses[:, None]], 1)
        numbers = rows.cpu().numpy()
        verdicts = [self._verdict(row) for row in numbers]
        if agree and get_world_size() > 1:
            # The losses are each process's own; gradients are the same on equal machines.
            flags = rows.new_tensor([v is not None for v in verdicts])
            all_reduce(flags, 'max')
            verdicts = [
                v or (Verdict('loss', None, None) if flag else None)
                for v, flag in zip(verdicts, flags.tolist(), strict=True)
            ]
        found = zip(steps, numbers, verdicts, strict=True)
        return [
            (step, row, verdict if step.norms is not None else verdict._replace(cause='loss_scale'))
            for step, row, verdict in found
            if verdict is not None
        ]

    def _verdict(self, row: np.ndarray) -> Verdict | None:
        """On a step's record and loss (7,)."""
        found = self.detector(row[0], row[2], row[5] == 1)
        by_loss = self.loss_detector(row[6], math.nan, False) if not math.isnan(row[6]) else None
        if found is None and by_loss is not None and by_loss.cause == 'norm':
            return Verdict('loss', by_loss.median, by_loss.threshold)
        return found


def rank_entry(step: StepRecord) -> dict[str, Any]:
    """What this process knows of a step's data: the entry of ``ranks`` in a line."""
    losses: dict[str, list[float]] = {}
    for batch in step.batches:
        for key, value in batch.losses.items():
            losses.setdefault(key, []).append(float(value))
    return {
        'rank': get_rank(),
        'images': [image for batch in step.batches for image in batch.images],
        'losses': {key: float(np.mean(values)) for key, values in losses.items()},
    }


def spike_line(
    step: StepRecord, numbers: np.ndarray, verdict: Verdict, ranks: list[dict]
) -> dict[str, Any]:
    """A line of ``spikes.jsonl``, field by field as :class:`GClipSpikeHook` describes it."""
    return {
        'iter': step.iter,
        'epoch': step.epoch,
        'cause': verdict.cause,
        'grad_norm': numbers[0],
        'median': verdict.median,
        'spike_threshold': verdict.threshold,
        'grad_norm_post': _or_none(numbers[1]),
        'clip_coef': _or_none(numbers[2]),
        'clip_threshold': _or_none(numbers[3]),
        'modules': _largest_modules(step),
        'ranks': ranks,
    }


def _largest_modules(step: StepRecord) -> list[dict[str, Any]]:
    if step.norms is None:
        return []
    norms: dict[str, float] = {}
    for info, norm in zip(step.infos, step.norms.cpu().tolist(), strict=True):
        name = module_name(info)
        # hypot, unlike a square, overflows no sooner than the norm itself.
        norms[name] = math.hypot(norms.get(name, 0.0), norm)

    def size(name: str) -> float:
        return norms[name] if math.isfinite(norms[name]) else math.inf

    names = sorted(norms, key=size, reverse=True)[:_MOST_MODULES]
    return [{'name': name, 'grad_norm': norms[name]} for name in names]


def _or_none(number: float) -> float | None:
    # A record's NaN stands for what does not exist, such as the threshold of a skipped step.
    return None if math.isnan(number) else float(number)


def to_json(value: Any) -> Any:
    """JSON's own numbers, and the words ``nan``, ``inf`` and ``-inf`` for those it has not."""
    if isinstance(value, dict):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    return value


def spike_summary(line: dict[str, Any], most: int = 4) -> str:
    """A line of ``spikes.jsonl`` as a sentence for the log; names ``most`` images."""
    paths = [
        str(image.get('img_path', image.get('img_id')))
        for entry in line['ranks']
        for image in entry['images']
    ]
    more = f' and {len(paths) - most} more' if len(paths) > most else ''
    value = line['grad_norm']
    if line['cause'] == 'loss':
        value = max(entry['losses'].get('loss', math.nan) for entry in line['ranks'])
    what = 'loss' if line['cause'] == 'loss' else 'gradient norm'
    usual = '' if line['median'] is None else f', usually {line["median"]:.3g}'
    module = f', most in {line["modules"][0]["name"]}' if line['modules'] else ''
    return (
        f'iteration {line["iter"]}: {line["cause"]}, {what} {value:.3g}{usual}{module}; '
        f'{", ".join(paths[:most])}{more}'
    )
