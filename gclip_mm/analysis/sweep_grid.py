"""A grid of trainings, learning rate by rule by seed: outcomes, tables and summary."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

#: How a training can end.
TRAINED, DIVERGED, FAILED = 'trained', 'diverged', 'failed'
#: The name of no clipping at all.
NONE = 'none'


@dataclass(frozen=True)
class Cell:
    """One training of the grid.

    Attributes:
        lr: the base learning rate.
        rule: the name of the rule; ``none``: without clipping.
        seed: of weights and data.
        clip_grad: config of the rule; None: without clipping.
        tuned: origin of the threshold, for the table.
    """

    lr: float
    rule: str
    seed: int
    clip_grad: dict[str, Any] | None = field(default=None, hash=False)
    tuned: str = ''

    @property
    def name(self) -> str:
        """Name of the folder, unique within a grid."""
        safe = ''.join(c if c.isalnum() or c in '._-' else '_' for c in self.rule)
        return f'{safe}_lr{self.lr:g}_seed{self.seed}'


@dataclass
class Outcome:
    """How the training of a cell ended.

    Attributes:
        status: ``trained`` (to the end, and validated), ``diverged`` (many consecutive losses were
            not finite) or ``failed`` (any other end: see ``error`` and the log of the cell).
        metric: the metric that counts (:func:`pick_metric`); NaN if not validated.
        iterations: number of iterations done.
        skipped: number of steps skipped because of a non-finite gradient.
        nonfinite_from: first iteration of the non-finite losses that ended the training.
        last_loss: the last finite loss.
        seconds: wall time.
        metrics: all metrics of the last validation.
        error: the message of a failed training.
        fingerprint: of the config of the training.
    """

    status: str
    metric: float = math.nan
    iterations: int = 0
    skipped: int = 0
    nonfinite_from: int | None = None
    last_loss: float = math.nan
    seconds: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    error: str = ''
    fingerprint: str = ''

    def save(self, path: Path) -> None:
        """Write the outcome atomically."""
        half = path.with_suffix('.tmp')
        half.write_text(json.dumps(asdict(self), indent=1) + '\n')
        half.replace(path)

    @classmethod
    def load(cls, path: Path) -> Outcome | None:
        """Read an outcome; None if the file is missing or malformed."""
        try:
            return cls(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):
            return None


Results = dict[Cell, Outcome]


def pick_metric(metrics: dict[str, float], name: str) -> float:
    """The value of a metric; 0 if the evaluator reports none, because nothing was detected.

    Raises:
        KeyError: there are other metrics, but not this one.
    """
    for key, value in metrics.items():
        if key == name or key.split('/', 1)[-1] == name:
            # COCO reports -1 for an empty mean.
            return max(float(value), 0.0)
    if metrics:
        raise KeyError(f'no metric {name!r}; there are {", ".join(sorted(metrics))}')
    return 0.0


COLUMNS = (
    'rule', 'lr', 'seed', 'status', 'metric', 'iterations', 'skipped_steps', 'nonfinite_from',
    'last_loss', 'seconds', 'tuned', 'clip_grad', 'command',
)  # fmt: skip


def write_csv(path: Path, rows: Iterable[tuple[Cell, Outcome, str]]) -> None:
    """Write a line for each cell, with the command that trains the cell."""
    half = path.with_suffix('.tmp')
    with half.open('w', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for cell, out, command in rows:
            writer.writerow([
                cell.rule, f'{cell.lr:g}', cell.seed, out.status, _number(out.metric),
                out.iterations, out.skipped,
                '' if out.nonfinite_from is None else out.nonfinite_from,
                _number(out.last_loss), f'{out.seconds:.0f}', cell.tuned,
                json.dumps(cell.clip_grad) if cell.clip_grad else '', command,
            ])  # fmt: skip
    half.replace(path)


def _number(value: float) -> str:
    return '' if math.isnan(value) else f'{value:.4f}'


@dataclass(frozen=True)
class Group:
    """The seeds of one rule at one learning rate.

    Attributes:
        metrics: one for each seed; a diverged or failed seed counts as 0.
        diverged: number of diverged seeds.
        failed: number of failed seeds.
    """

    metrics: tuple[float, ...]
    diverged: int
    failed: int

    @property
    def is_whole(self) -> bool:
        """Whether every seed trained to the end."""
        return bool(self.metrics) and not self.diverged and not self.failed

    @property
    def mean(self) -> float:
        """Mean metric over the seeds; NaN without any."""
        return fmean(self.metrics) if self.metrics else math.nan

    @property
    def spread(self) -> float:
        """Sample standard deviation over the seeds; 0 for a single one."""
        return stdev(self.metrics) if len(self.metrics) > 1 else 0.0


def group(results: Results, rule: str, lr: float) -> Group:
    """Gather the seeds of a rule at a rate."""
    found = [o for c, o in results.items() if c.rule == rule and c.lr == lr]
    metrics = tuple(
        o.metric if o.status == TRAINED and math.isfinite(o.metric) else 0.0 for o in found
    )
    return Group(
        metrics,
        sum(o.status == DIVERGED for o in found),
        sum(o.status == FAILED for o in found),
    )


@dataclass(frozen=True)
class RuleSummary:
    """A rule over all learning rates.

    Attributes:
        rule: name of the rule.
        best_lr, best_mean, best_spread: the rate with the best mean metric, that mean, and the
            standard deviation over its seeds.
        largest_lr: the largest rate at which every seed trained to the end with a mean of at least
            :func:`enough`; None: no rate qualifies.
        ratio: ``largest_lr`` over that without clipping; NaN if either is missing.
    """

    rule: str
    best_lr: float
    best_mean: float
    best_spread: float
    largest_lr: float | None
    ratio: float


def enough(results: Results, share: float) -> float:
    """The least metric of a training that counts: a share of the best mean without clipping.

    A grid without unclipped trainings takes the best mean of any rule.
    """
    rules = {c.rule for c in results}
    judged = [NONE] if NONE in rules else sorted(rules)
    means = [group(results, r, lr).mean for r in judged for lr in {c.lr for c in results}]
    return share * max((m for m in means if math.isfinite(m)), default=math.nan)


def summarise(
    results: Results, rules: Sequence[str], lrs: Sequence[float], share: float
) -> list[RuleSummary]:
    """Summarise every rule.

    Args:
        results: the cells that are done.
        rules: in the order of the result.
        lrs: the learning rates.
        share: see :func:`enough`.
    """
    bound = enough(results, share)
    largest: dict[str, float | None] = {}
    for rule in rules:
        groups = {lr: group(results, rule, lr) for lr in lrs}
        good = [lr for lr, g in groups.items() if g.is_whole and g.mean >= bound]
        largest[rule] = max(good, default=None)
    base = largest.get(NONE)
    rows = []
    for rule in rules:
        means = {lr: group(results, rule, lr).mean for lr in lrs}
        best_lr = max(means, key=lambda lr: -math.inf if math.isnan(means[lr]) else means[lr])
        best = group(results, rule, best_lr)
        top = largest[rule]
        ratio = top / base if top is not None and base is not None else math.nan
        rows.append(RuleSummary(rule, best_lr, best.mean, best.spread, top, ratio))
    return rows


def format_grid(results: Results, rules: Sequence[str], lrs: Sequence[float]) -> str:
    """The means as a Markdown table with a row for each rule, and the number of diverged seeds."""
    lines = [
        '| rule | ' + ' | '.join(f'lr {lr:g}' for lr in lrs) + ' |',
        '|---' * (len(lrs) + 1) + '|',
    ]
    for rule in rules:
        texts = []
        for lr in lrs:
            g = group(results, rule, lr)
            text = f'{g.mean:.3f}' if g.metrics else ''
            if g.diverged:
                text += f' ({g.diverged}/{len(g.metrics)} diverged)'
            if g.failed:
                text += f' ({g.failed}/{len(g.metrics)} failed)'
            texts.append(text)
        lines.append(f'| {rule} | ' + ' | '.join(texts) + ' |')
    return '\n'.join(lines)


def format_summary(rows: Sequence[RuleSummary], bound: float) -> str:
    """The summary as a Markdown table."""
    lines = [
        '| rule | best metric (mean ± std) | at lr | largest lr that trains (every seed to the '
        f'end, mean at least {bound:.3f}) | over none |',
        '|---|---|---|---|---|',
    ]
    for r in rows:
        top = 'none of these' if r.largest_lr is None else f'{r.largest_lr:g}'
        ratio = '' if math.isnan(r.ratio) else f'{r.ratio:.3g}x'
        best = f'{r.best_mean:.3f} ± {r.best_spread:.3f}'
        lines.append(f'| {r.rule} | {best} | {r.best_lr:g} | {top} | {ratio} |')
    return '\n'.join(lines)
