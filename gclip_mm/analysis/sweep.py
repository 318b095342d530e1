"""A sweep: trains the cells of a grid in processes, and writes the tables and the picture."""

from __future__ import annotations

import multiprocessing
import os
import site
import sys
import time
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

from ..clipping.config.parse import parse_clip_grad
from ..engine.apply_clip import read_recipe
from ..engine.configs import optim_wrappers
from . import sweep_worker
from .advice import PROPORTIONAL, advise
from .gradient_stats import load_stats
from .sweep_cell import cell_config, fingerprint
from .sweep_grid import (
    FAILED,
    NONE,
    TRAINED,
    Cell,
    Outcome,
    enough,
    format_grid,
    format_summary,
    pick_metric,
    summarise,
    write_csv,
)

#: The advice for each rule, and the key that is taken from it.
ADVISED = {
    'ValueClip': ('value', 'clip_value'),
    'NormClip': ('norm', 'max_norm'),
    'AGC': ('agc', 'clip_factor'),
    'ZClip': ('zclip', 'max_norm'),
}


class SweepError(Exception):
    """A mistake in the command; the message is one line."""


@dataclass
class SweepOptions:
    """What to train and how to judge it.

    Attributes:
        config: name of the base config, for the commands in ``sweep.csv``.
        out: folder of the results.
        lr: learning rates, rising.
        clip: rules: ``none``, recipes or inline rules, each with an optional ``LABEL:``.
        seeds: of weights and data.
        tune: ``advise`` or ``recipe``: the source of the thresholds of recipes.
        jobs: trainings at once; None: one for each GPU.
        metric: name of the metric of the last validation.
        enough: see :func:`gclip_mm.analysis.sweep_grid.enough`.
        patience: a training has diverged after so many consecutive non-finite losses.
        title: of the picture.
        keep_checkpoints: keep the checkpoints of a training that has ended.
        report: train nothing.
        cfg_options: changes of the base config, for the commands in ``sweep.csv``.
    """

    config: str
    out: Path
    lr: list[float]
    clip: list[str]
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    tune: str = 'advise'
    jobs: int | None = None
    metric: str = 'bbox_mAP'
    enough: float = 0.9
    patience: int = 20
    title: str | None = None
    keep_checkpoints: bool = False
    report: bool = False
    cfg_options: dict[str, Any] | None = None


# -- the grid ------------------------------------------------------------------------------------
def read_rule(text: str, tune: bool) -> tuple[str, dict[str, Any] | None, bool]:
    """The label of a rule, its config, and whether the advisor sets its threshold."""
    label, colon, recipe = text.partition(':')
    if not colon or '=' in label:
        label = recipe = text
    if recipe.lower() == NONE:
        return label, None, False
    clip_grad = read_recipe(recipe)
    parse_clip_grad(clip_grad)
    # A number that is given inline is not replaced by the advisor.
    return label, clip_grad, tune and '=' not in recipe and rule_type(clip_grad) in ADVISED


def make_cells(options: SweepOptions, cfg: Config) -> list[Cell]:
    """All cells, the first seed of every combination first."""
    rules = [read_rule(text, options.tune == 'advise') for text in options.clip]
    advises = any(advised for _, _, advised in rules)
    advice = advise_all(cfg, options.out, options.lr, options.report) if advises else {}
    cells = []
    for seed in options.seeds:
        for lr in options.lr:
            for label, clip_grad, advised in rules:
                tuned = 'recipe' if clip_grad else ''
                if advised and clip_grad is not None:
                    name, key = ADVISED[rule_type(clip_grad)]
                    clip_grad = {**clip_grad, key: advice[lr][name][key]}
                    tuned = f'{key} from the advisor'
                cells.append(Cell(lr, label, seed, clip_grad, tuned))
    return cells


def rule_type(clip_grad: dict[str, Any]) -> str:
    """The class name of a rule, which may be given by an alias or as a plain MMEngine dict."""
    return type(parse_clip_grad(clip_grad).outer).__name__


def advise_all(
    cfg: Config, out: Path, lrs: list[float], report: bool
) -> dict[float, dict[str, dict[str, Any]]]:
    """The advisor's configs for each learning rate, from one recording."""
    stats = out / 'stats.npz'
    if not stats.exists():
        if report:
            raise SweepError(f'{stats} is not there, so nothing was trained with advice')
        print('recording gradients for the advisor', flush=True)
        process = context().Process(
            target=sweep_worker.record, args=(cfg, stats, torch.get_num_threads())
        )
        process.start()
        process.join()
        if not stats.exists():
            raise SweepError(f'the recording failed; see {stats.with_suffix(".log")}')
    optimizer = next(optim_wrappers(cfg))[1]['optimizer']
    kind = getattr(optimizer['type'], '__name__', optimizer['type'])
    recorded = load_stats(stats)
    return {
        lr: {
            a.name: a.clip_grad
            for a in advise(recorded, lr, optimizer.get('momentum', 0.0), kind in PROPORTIONAL)
        }
        for lr in lrs
    }


def command_of(cell: Cell, options: SweepOptions, clips: bool) -> str:
    """The command that trains one cell."""
    words = ['python tools/train.py', options.config]
    settings = [f'optim_wrapper.optimizer.lr={cell.lr:g}', f'randomness.seed={cell.seed}']
    settings += [f'{k}={v}'.replace(' ', '') for k, v in (options.cfg_options or {}).items()]
    if cell.clip_grad is not None:
        keys = {k: v if k == 'type' else repr(v) for k, v in cell.clip_grad.items()}
        inline = ','.join(f'{k}={v}' for k, v in keys.items()).replace(' ', '')
        words += ['--clip', f'"{inline}"']
    elif clips:
        settings.append('optim_wrapper.clip_grad=None')
    return ' '.join([*words, '--cfg-options', *settings])


# -- the trainings -------------------------------------------------------------------------------
def context() -> Any:
    """Starts processes; where the system can fork, with everything imported."""
    _export_path()
    if 'forkserver' not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context('spawn')
    found: Any = multiprocessing.get_context('forkserver')
    found.set_forkserver_preload([sweep_worker.__name__])
    return found


def _export_path() -> None:
    """Let child processes import this package from a checkout that is not installed."""
    root = str(Path(__file__).resolve().parents[2])
    paths = os.environ.get('PYTHONPATH', '').split(os.pathsep)
    # An installed package must not be put before the standard library.
    if root not in [*paths, *site.getsitepackages(), site.getusersitepackages()]:
        os.environ['PYTHONPATH'] = os.pathsep.join(p for p in [root, *paths] if p)


class Sweep:
    """The cells of a sweep, their outcomes, and the files that are written about them.

    Args:
        options: what to train.
        cfg: the base config, with one optimizer; it is not changed.

    Raises:
        SweepError: advice or a metric is missing.
        ClipConfigError: a rule cannot be parsed.
    """

    def __init__(self, options: SweepOptions, cfg: Config) -> None:
        self.options, self.cfg, self.out = options, cfg, options.out
        self.cells = make_cells(options, cfg)
        self.clips = any(w.get('clip_grad') for _, w in optim_wrappers(cfg))
        self.rules = list(dict.fromkeys(c.rule for c in self.cells))
        self.configs = {c: cell_config(cfg, c, self.folder(c)) for c in self.cells}
        self.results: dict[Cell, Outcome] = {}
        for cell in self.cells:
            found = Outcome.load(self.folder(cell) / 'outcome.json')
            # A failed cell (out of memory, disk full) is trained again.
            if found and (found.status != FAILED or options.report) and self.is_same(cell, found):
                self.keep(cell, found)

    def folder(self, cell: Cell) -> Path:
        """The work dir of a cell."""
        return self.out / 'cells' / cell.name

    def is_same(self, cell: Cell, found: Outcome) -> bool:
        """Whether an outcome is that of the config that a cell has now."""
        return found.fingerprint == fingerprint(self.configs[cell])

    def keep(self, cell: Cell, found: Outcome) -> None:
        """Take over an outcome.

        Raises:
            SweepError: the validation has no such metric.
        """
        if found.status == TRAINED:
            try:
                found.metric = pick_metric(found.metrics, self.options.metric)
            except KeyError as error:
                raise SweepError(f'--metric: {error.args[0]}') from None
        self.results[cell] = found

    def run(self) -> None:
        """Train the cells that have no outcome yet, and write the files after each."""
        todo = [c for c in self.cells if c not in self.results]
        jobs = self.options.jobs or max(torch.cuda.device_count(), 1)
        running: dict[BaseProcess, tuple[Cell, int]] = {}
        free = list(range(jobs))
        start, done = time.monotonic(), 0
        try:
            while todo or running:
                while todo and free:
                    cell, slot = todo.pop(0), free.pop(0)
                    running[self.start(cell, slot, jobs)] = (cell, slot)
                wait([p.sentinel for p in running])
                for process in [p for p in running if not p.is_alive()]:
                    process.join()
                    cell, slot = running.pop(process)
                    free.append(slot)
                    done += 1
                    self.finish(cell, process.exitcode)
                    left = (time.monotonic() - start) / done * (len(todo) + len(running))
                    self.announce(cell, left)
        except BaseException:
            for process in running:
                process.terminate()
            print('\nstopped; the same command continues from here', file=sys.stderr)
            raise

    def start(self, cell: Cell, slot: int, jobs: int) -> BaseProcess:
        """Start the process of a cell."""
        folder = self.folder(cell)
        old = Outcome.load(folder / 'outcome.json')
        sweep_worker.clear(folder, everything=old is not None)
        # The jobs share the threads that the environment allows (OMP_NUM_THREADS).
        threads = max(torch.get_num_threads() // jobs, 1)
        process = context().Process(
            target=sweep_worker.train,
            args=(self.configs[cell], folder, self.options.patience, slot, threads,
                  self.options.keep_checkpoints),
        )  # fmt: skip
        process.start()
        return process

    def finish(self, cell: Cell, exitcode: int | None) -> None:
        """Take over the outcome of a process that has ended, and write the files."""
        found = Outcome.load(self.folder(cell) / 'outcome.json')
        if found is None:
            found = Outcome(FAILED, error=f'the process ended with code {exitcode}')
        self.keep(cell, found)
        self.write()

    def announce(self, cell: Cell, left: float) -> None:
        """Print the outcome of a cell, and an estimate of the time left in seconds."""
        found = self.results[cell]
        what = {TRAINED: f'{self.options.metric} {found.metric:.3f}'}.get(
            found.status, f'{found.status} at iteration {found.nonfinite_from or found.iterations}'
        )
        log = self.folder(cell) / 'output.log'
        note = f' ({found.error}; see {log})' if found.status == FAILED else ''
        minutes = round(left / 60)
        print(
            f'[{len(self.results)}/{len(self.cells)}] {cell.rule} lr {cell.lr:g} seed {cell.seed}: '
            f'{what}, {found.seconds:.0f} s{note}; {minutes // 60} h {minutes % 60:02d} min left',
            flush=True,
        )

    def write(self) -> None:
        """Write ``sweep.csv``, ``sweep.md`` and ``sweep.png`` from the outcomes so far."""
        from .pictures.sweep import save_sweep

        rows = [(c, self.results[c], command_of(c, self.options, self.clips))
                for c in self.cells if c in self.results]  # fmt: skip
        write_csv(self.out / 'sweep.csv', rows)
        (self.out / 'sweep.md').write_text(self.text() + '\n')
        save_sweep(
            self.results, self.rules, self.options.lr, enough(self.results, self.options.enough),
            self.options.metric, self.options.title or Path(self.options.config).stem,
            self.out / 'sweep.png',
        )  # fmt: skip

    def text(self) -> str:
        """The table and the summary, as Markdown."""
        rows = summarise(self.results, self.rules, self.options.lr, self.options.enough)
        bound = enough(self.results, self.options.enough)
        return (
            f'{self.options.metric}, mean over {len(self.options.seeds)} seeds '
            f'(a diverged one counts as 0); {len(self.results)} of {len(self.cells)} trainings '
            'done\n\n'
            f'{format_grid(self.results, self.rules, self.options.lr)}\n\n'
            f'{format_summary(rows, bound)}'
        )
