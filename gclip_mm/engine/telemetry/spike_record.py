"""What is kept of each step until it is known whether it was a spike, and what is written then."""

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
        record: (6,) the engine's record (:mod:`gclip_mm.clipping.step.record`).
        infos: the N parameters that had a gradient.
        norms: (N,) their norms before clipping; None where a loss scaler kept the step back.
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


class _StepMeasurer(StepObserver):
    """Keeps, on the device, what a step's engine has measured."""

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
        pairs = zip(views, measures, strict=True)
        parts = [parameter_norms(part, measure, scale).double() for part, measure in pairs]
        self._norms = parts[0] if len(parts) == 1 else torch.cat(parts)
        first = views[0].view.infos
        self._infos = first if len(views) == 1 else [i for _, v in views for i in v.infos]
        self._norm = norm

    def on_record(self, record: Tensor) -> None:
        self._steps.append((record, self._infos, self._norms))
        self._norm = self._norms = None

    def take(self) -> list[tuple[Tensor, list[ParamInfo], Tensor | None]]:
        """Record, parameters and norms of the steps since the last call."""
        if self._norm is not None:
            # Broken off between measuring and clipping, as nonfinite='raise' does.
            nan = self._norm.new_full((5,), math.nan, dtype=torch.float64)
            self.on_record(torch.cat([self._norm.double().reshape(1), nan]))
        steps, self._steps = self._steps, []
        return steps


class StepBuffer:
    """The steps of one optimizer that have not been looked at.

    Args:
        name: the member of an ``OptimWrapperDict``, or empty.
        make_detector: makes a detector of spikes.
        iterations: how many iterations' data belong to a step at most.
    """

    def __init__(
        self, name: str, make_detector: Callable[[], SpikeDetector], iterations: int
    ) -> None:
        self.name = name
        self.detector = make_detector()
        # One for each term: what stands out of a small term may drown in the sum.
        self.loss_detectors = defaultdict(make_detector)
        self.observer = _StepMeasurer()
        self._batches: deque[BatchRecord] = deque(maxlen=iterations)
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
        steps = self.observer.take()
        if not steps:
            return
        batches = list(self._batches)
        self._batches.clear()
        self._steps += [StepRecord(*self._when, batches, *step) for step in steps]

    def judge(self, agree: bool = False) -> list[tuple[StepRecord, np.ndarray, Verdict]]:
        """The spikes among the steps, which are then forgotten; the host waits for the device."""
        steps, self._steps = self._steps, []
        if not steps:
            return []
        numbers = torch.stack([step.record for step in steps]).cpu().numpy()
        losses = _to_host([step.losses() for step in steps])
        verdicts = [self._verdict(*pair) for pair in zip(numbers, losses, strict=True)]
        if agree and get_world_size() > 1:
            # The losses are each process's own; gradients are the same on equal machines.
            flags = steps[0].record.new_tensor([v is not None for v in verdicts])
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

    def _verdict(self, row: np.ndarray, losses: dict[str, float]) -> Verdict | None:
        """On a step's record (6,) and the terms of its loss."""
        found = self.detector(row[0], row[2], row[5] == 1)
        worst, most = None, 0.0
        # The sum last: where a term explains it as well, the term says more.
        for term, value in sorted(losses.items(), key=lambda item: item[0] == 'loss'):
            verdict = self.loss_detectors[term](value, math.nan, False)
            if verdict is None:
                continue
            excess = value / verdict.threshold if verdict.cause == 'norm' else math.inf
            if excess > most:
                worst, most = verdict._replace(cause='loss', term=term), excess
        return found if found is not None else worst


def _to_host(losses: list[dict[str, Tensor]]) -> list[dict[str, float]]:
    """The terms of the loss of several steps, without what else is logged; copied at once."""
    terms = [{key: value for key, value in step.items() if 'loss' in key} for step in losses]
    values = [value for step in terms for value in step.values()]
    if not values:
        return [{} for _ in losses]
    # Numbers among tensors are on the CPU.
    device = next((v.device for v in values if v.device.type != 'cpu'), values[0].device)
    numbers = iter(torch.stack([value.to(device) for value in values]).tolist())
    return [{key: next(numbers) for key in step} for step in terms]


def rank_entry(step: StepRecord) -> dict[str, Any]:
    """What this process knows of a step's data: the entry of ``ranks`` in a line."""
    return {
        'rank': get_rank(),
        'images': [image for batch in step.batches for image in batch.images],
        'losses': {key: value.item() for key, value in step.losses().items()},
    }


def spike_line(
    step: StepRecord, numbers: np.ndarray, verdict: Verdict, ranks: list[dict]
) -> dict[str, Any]:
    """A line of ``spikes.jsonl``, field by field as :class:`GClipSpikeHook` describes it."""
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
        # hypot, unlike a square, overflows no sooner than the norm itself.
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
    what, value = 'gradient norm', line['grad_norm']
    if 'loss_term' in line:
        what = line['loss_term']
        value = max(entry['losses'].get(what, math.nan) for entry in line['ranks'])
    usual = '' if line['median'] is None else f', usually {line["median"]:.3g}'
    module = f', most in {line["modules"][0]["name"]}' if line['modules'] else ''
    bad, total = line['modules_not_finite'], line['modules_in_all']
    if bad == total > 1:
        # It comes from what they all learn from, and none of them is to blame.
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
