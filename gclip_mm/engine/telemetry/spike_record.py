"""Data of the steps that are not yet checked for spikes, and the lines written for spikes."""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.dist import all_reduce, get_rank, get_world_size
from torch import Tensor

from ...clipping.base import Measure
from ...clipping.gradients.names import ParamInfo
from ...clipping.step.observers import StepObserver, parameter_norms
from ...clipping.step.parameters import RoutedView
from .module_probe import module_name
from .spike_detector import SpikeDetector, Verdict

#: Maximum number of modules in a line.
_MOST_MODULES = 10


class BatchRecord:
    """Data of an iteration.

    Args:
        images: the images, each with ``img_id`` or ``img_path``.
        data: the batch itself, as the data loader returned it; None: not kept.

    Attributes:
        losses: the terms of the loss and other numbers that the model returned.
    """

    def __init__(self, images: list[dict[str, Any]], data: Any) -> None:
        self.images = images
        self.data = data
        self.losses: dict[str, Tensor | float] = {}


class StepRecord(NamedTuple):
    """Data of a step of the optimizer.

    Attributes:
        iter: last iteration of the step, from 1.
        epoch: its epoch, from 1.
        batches: data of the iterations of the step.
        record: (6,) float64, the engine's record (:mod:`gclip_mm.clipping.step.record`).
        infos: the N parameters that had a gradient.
        norms: (N,) float64, norms of their gradients before clipping; None if the loss scaler
            skipped the step.
    """

    iter: int
    epoch: int
    batches: list[BatchRecord]
    record: Tensor
    infos: list[ParamInfo]
    norms: Tensor | None

    def losses(self) -> dict[str, Tensor]:
        """Each term of the loss, 0-d float64: the mean over the step's batches."""
        terms: dict[str, list[Tensor]] = {}
        for batch in self.batches:
            for key, value in batch.losses.items():
                terms.setdefault(key, []).append(torch.as_tensor(value, dtype=torch.float64))
        return {key: torch.stack(values).mean() for key, values in terms.items()}


class Spike(NamedTuple):
    """A step that is a spike.

    Attributes:
        step: data of the step.
        numbers: (6,) float64, its record on the host.
        verdict: why it is a spike.
    """

    step: StepRecord
    numbers: np.ndarray
    verdict: Verdict


class _StepMeasurer(StepObserver):
    """Keeps the measurements of the engine for each step, on the device."""

    def __init__(self) -> None:
        self._infos: list[ParamInfo] = []
        self._norms: Tensor | None = None
        self._norm: Tensor | None = None
        self._steps: list[tuple[Tensor, list[ParamInfo], Tensor | None]] = []

    def before_clip(
        self,
        views: list[RoutedView],
        measures: list[Measure],
        norm: Tensor,
        scale: Tensor | None,
    ) -> None:
        """Keep the norm of each gradient, (N,) float64, without the loss scale."""
        pairs = zip(views, measures, strict=True)
        parts = [parameter_norms(part, measure, scale).double() for part, measure in pairs]
        self._norms = parts[0] if len(parts) == 1 else torch.cat(parts)
        first = views[0].view.infos
        self._infos = first if len(views) == 1 else [i for _, v in views for i in v.infos]
        self._norm = norm

    def on_record(self, record: Tensor) -> None:
        """Keep the record (6,) of the step; without norms if ``before_clip`` was not called."""
        self._steps.append((record, self._infos, self._norms))
        self._norm = self._norms = None

    def take(self) -> list[tuple[Tensor, list[ParamInfo], Tensor | None]]:
        """Record, parameters and norms of the steps since the last call."""
        if self._norm is not None:
            # An error ended the step between measuring and clipping, as with nonfinite='raise'.
            nan = self._norm.new_full((5,), math.nan, dtype=torch.float64)
            self.on_record(torch.cat([self._norm.double().reshape(1), nan]))
        steps, self._steps = self._steps, []
        return steps


class StepBuffer:
    """The steps of one optimizer that are not yet checked for spikes.

    Args:
        name: the member of an ``OptimWrapperDict``, or empty.
        make_detector: returns a new spike detector.
        iterations: maximum number of iterations of one step.
    """

    def __init__(
        self, name: str, make_detector: Callable[[], SpikeDetector], iterations: int
    ) -> None:
        self.name = name
        self.detector = make_detector()
        # One for each term: an outlier of a small term may not be one of the sum.
        self.loss_detectors: defaultdict[str, SpikeDetector] = defaultdict(make_detector)
        self.observer = _StepMeasurer()
        self._batches: deque[BatchRecord] = deque(maxlen=iterations)
        self._when = (0, 0)
        self._steps: list[StepRecord] = []

    def begin(self, iteration: int, epoch: int, batch: BatchRecord) -> None:
        """Store an iteration's data; ``iteration`` and ``epoch`` from 1."""
        self._when = (iteration, epoch)
        self._batches.append(batch)

    def end(self, losses: dict[str, Tensor | float]) -> None:
        """Store an iteration's losses; it is complete, or was ended by an error."""
        if self._batches:
            self._batches[-1].losses = losses
        steps = self.observer.take()
        if not steps:
            return
        batches = list(self._batches)
        self._batches.clear()
        iteration, epoch = self._when
        self._steps += [
            StepRecord(iteration, epoch, batches, record, infos, norms)
            for record, infos, norms in steps
        ]

    def judge(self, agree: bool = False) -> list[Spike]:
        """The spikes among the steps; the buffer is then empty. The host waits for the device.

        Args:
            agree: a step is a spike for every process if it is one for any process.
        """
        steps, self._steps = self._steps, []
        if not steps:
            return []
        numbers = torch.stack([step.record for step in steps]).cpu().numpy()
        losses = _to_host([step.losses() for step in steps])
        verdicts = [self._verdict(*pair) for pair in zip(numbers, losses, strict=True)]
        if agree and get_world_size() > 1:
            # Gradients are the same in every process, but each process has its own losses.
            flags = steps[0].record.new_tensor([v is not None for v in verdicts])
            all_reduce(flags, 'max')
            verdicts = [
                v or (Verdict('loss', None, None) if flag else None)
                for v, flag in zip(verdicts, flags.tolist(), strict=True)
            ]
        spikes = []
        for step, row, verdict in zip(steps, numbers, verdicts, strict=True):
            if verdict is not None:
                if step.norms is None:
                    verdict = verdict._replace(cause='loss_scale')
                spikes.append(Spike(step, row, verdict))
        return spikes

    def _verdict(self, row: np.ndarray, losses: dict[str, float]) -> Verdict | None:
        """Judge a step by its record (6,) and by the terms of its loss; None: no spike."""
        found = self.detector(row[0], row[2], row[5] == 1)
        worst, most = None, 0.0
        # The sum last: a single term is the more specific cause.
        for term, value in sorted(losses.items(), key=lambda item: item[0] == 'loss'):
            verdict = self.loss_detectors[term](value, math.nan, False)
            if verdict is None:
                continue
            excess = math.inf
            if verdict.cause == 'norm' and verdict.threshold is not None:
                excess = value / verdict.threshold
            if excess > most:
                worst, most = verdict._replace(cause='loss', term=term), excess
        return found if found is not None else worst


def _to_host(losses: list[dict[str, Tensor]]) -> list[dict[str, float]]:
    """The terms of the loss of several steps, with one copy from the device."""
    terms = [{key: value for key, value in step.items() if 'loss' in key} for step in losses]
    values = [value for step in terms for value in step.values()]
    if not values:
        return [{} for _ in losses]
    # Losses that the model returned as numbers are tensors on the CPU.
    device = next((v.device for v in values if v.device.type != 'cpu'), values[0].device)
    numbers = iter(torch.stack([value.to(device) for value in values]).tolist())
    return [{key: next(numbers) for key in step} for step in terms]


def rank_entry(step: StepRecord) -> dict[str, Any]:
    """The entry of this process in the field ``ranks`` of a line."""
    return {
        'rank': get_rank(),
        'images': [image for batch in step.batches for image in batch.images],
        'losses': {key: value.item() for key, value in step.losses().items()},
    }


def spike_line(
    step: StepRecord, numbers: np.ndarray, verdict: Verdict, ranks: list[dict[str, Any]]
) -> dict[str, Any]:
    """A line of ``spikes.jsonl`` with the fields that :class:`GClipSpikeHook` describes.

    Args:
        step: data of the step.
        numbers: (6,), its record on the host.
        verdict: why the step is a spike.
        ranks: the :func:`rank_entry` of each process.
    """
    return {
        'iter': step.iter,
        'epoch': step.epoch,
        'cause': verdict.cause,
        **({} if verdict.term is None else {'loss_term': verdict.term}),
        'grad_norm': numbers[0],
        'median': verdict.median,
        'spike_threshold': verdict.threshold,
        'grad_norm_post': _or_none(numbers[1]),
        'clip_coef': _or_none(numbers[2]),
        'clip_threshold': _or_none(numbers[3]),
        **_largest_modules(step),
        'ranks': ranks,
    }


def _largest_modules(step: StepRecord) -> dict[str, Any]:
    if step.norms is None:
        return {'modules': [], 'modules_not_finite': 0, 'modules_in_all': 0}
    norms: dict[str, float] = {}
    for info, norm in zip(step.infos, step.norms.cpu().tolist(), strict=True):
        name = module_name(info)
        # Unlike a sum of squares, hypot overflows only if the norm itself does.
        norms[name] = math.hypot(norms.get(name, 0.0), norm)

    def size(name: str) -> float:
        return norms[name] if math.isfinite(norms[name]) else math.inf

    names = sorted(norms, key=size, reverse=True)[:_MOST_MODULES]
    return {
        'modules': [{'name': name, 'grad_norm': norms[name]} for name in names],
        'modules_not_finite': sum(not math.isfinite(norm) for norm in norms.values()),
        'modules_in_all': len(norms),
    }


def _or_none(number: float) -> float | None:
    # NaN in a record marks a missing number, such as the threshold of a skipped step.
    return None if math.isnan(number) else float(number)


def to_json(value: Any) -> Any:
    """A copy for JSON: non-finite numbers become the strings ``nan``, ``inf`` and ``-inf``."""
    if isinstance(value, dict):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    return value


def spike_summary(line: dict[str, Any], most: int = 4) -> str:
    """A line of ``spikes.jsonl`` as a sentence for the log; it names up to ``most`` images."""
    paths = [
        str(image.get('img_path', image.get('img_id')))
        for entry in line['ranks']
        for image in entry['images']
    ]
    more = f' and {len(paths) - most} more' if len(paths) > most else ''
    what, value = 'gradient norm', line['grad_norm']
    if 'loss_term' in line:
        what = line['loss_term']
        value = max(entry['losses'].get(what, math.nan) for entry in line['ranks'])
    usual = '' if line['median'] is None else f', usually {line["median"]:.3g}'
    module = f', most in {line["modules"][0]["name"]}' if line['modules'] else ''
    bad, total = line['modules_not_finite'], line['modules_in_all']
    if bad == total > 1:
        # The cause is common to all modules, so none of them is named.
        losses = [value for entry in line['ranks'] for value in entry['losses'].values()]
        are_fine = bool(losses) and all(map(math.isfinite, losses))
        module = f', in all {total} modules' + '; every loss is finite' * are_fine
    elif bad:
        names = ', '.join(module['name'] for module in line['modules'][: min(bad, 3)])
        module = f', not finite in {bad} of {total} modules: {names}{" ..." if bad > 3 else ""}'
    return (
        f'iteration {line["iter"]}: {line["cause"]}, {what} {value:.3g}{usual}{module}; '
        f'{", ".join(paths[:most])}{more}'
    )
