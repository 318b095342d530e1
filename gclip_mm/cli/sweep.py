"""How large a learning rate does a config survive, with each clipping rule and without?

    python tools/analysis/stability_sweep.py configs/bccd/faster-rcnn_tiny_bccd_none.py \\
        --lr 0.04 0.08 0.16 0.5 1.5 --clip none value norm agc zclip autoclip --seeds 0 1 2 \\
        --tune advise --out work_dirs/sweep

Trains every combination of learning rate, rule and seed, each in a process of its own, several at
once with ``--jobs`` (one for each GPU, where there are any). In ``--out``, rewritten whenever a
training ends:

``sweep.csv``
    a line a training: how it ended, its metric, its rule, and the command that trains it alone.
``sweep.md``
    the table, rule by learning rate, and the summary.
``sweep.png``
    the metric over the learning rate, a line a rule, with the spread over the seeds and a cross for
    each training that diverged.
``cells/``
    a work dir for each training, its log and its ``outcome.json``.

The same command goes on where an earlier one stopped, and trains again what was trained with other
settings. A rule is ``none``, a recipe in ``configs/_base_/clip`` by name, a file, or inline as
``type=AGC,clip_factor=0.02``; ``LABEL:`` before it gives it a name.

With ``--tune advise`` the thresholds of recipes of ValueClip, NormClip, AGC and ZClip are those
that ``advise_clipping.py`` suggests for each learning rate, from one short recording; other rules,
what is given inline, and all with ``--tune recipe``, keep the numbers that they have.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

# A checkout works without being installed, and before an installed copy.
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import sweep_worker  # noqa: E402
import torch  # noqa: E402
from mmengine.config import Config, DictAction  # noqa: E402

import gclip_mm  # noqa: E402
from gclip_mm.analysis.advice import PROPORTIONAL, advise  # noqa: E402
from gclip_mm.analysis.gradient_stats import load_stats  # noqa: E402
from gclip_mm.analysis.record import AdviceError  # noqa: E402
from gclip_mm.analysis.sweep_cell import cell_config, fingerprint  # noqa: E402
from gclip_mm.analysis.sweep_grid import (  # noqa: E402
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
from gclip_mm.clipping.config.parse import parse_clip_grad  # noqa: E402
from gclip_mm.engine.apply_clip import read_recipe  # noqa: E402
from gclip_mm.engine.launch import LaunchError, load_config, optim_wrappers  # noqa: E402

#: Which advice is for which rule, and what of it is taken over.
ADVISED = {
    'ValueClip': ('value', 'clip_value'),
    'NormClip': ('norm', 'max_norm'),
    'AGC': ('agc', 'clip_factor'),
    'ZClip': ('zclip', 'max_norm'),
}


class SweepError(Exception):
    """A mistake in the command that one line can explain."""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'config', help='config file, or a stock one as mmdet::faster_rcnn/<name>.py'
    )
    parser.add_argument('--lr', type=float, nargs='+', required=True, help='learning rates')
    parser.add_argument(
        '--clip', nargs='+', required=True, metavar='RULE', help='none, recipes, inline rules'
    )
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2], help='(%(default)s)')
    parser.add_argument(
        '--tune',
        choices=['advise', 'recipe'],
        default='advise',
        help='where the thresholds of recipes come from (%(default)s)',
    )
    parser.add_argument('--out', type=Path, help='folder (work_dirs/sweep/<config name>)')
    parser.add_argument(
        '--jobs', type=int, help='trainings at once (one for each GPU; 1 without a GPU)'
    )
    parser.add_argument(
        '--metric', default='bbox_mAP', help='what counts, of the last validation (%(default)s)'
    )
    parser.add_argument(
        '--enough',
        type=float,
        default=0.9,
        metavar='SHARE',
        help='a rate counts as trained if no seed is lost and their mean is at least this share of '
        'the best without clipping (%(default)s)',
    )
    parser.add_argument(
        '--patience',
        type=int,
        default=20,
        help='a training has diverged after so many non-finite losses on end (%(default)s)',
    )
    parser.add_argument('--title', help='of the figure (the name of the config)')
    parser.add_argument(
        '--keep-checkpoints', action='store_true', help='keep them when a training has ended'
    )
    parser.add_argument(
        '--report', action='store_true', help='train nothing; write the files from what is there'
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='override settings of the config, as key=value',
    )
    args = parser.parse_args(argv)
    if any(not 0 < lr < float('inf') for lr in args.lr):
        parser.error(f'--lr must be above 0, got {args.lr}')
    for name in ('lr', 'clip', 'seeds'):
        values = getattr(args, name)
        if len(set(values)) < len(values):
            parser.error(f'--{name} names something twice: {values}')
    if args.jobs is not None and args.jobs < 1:
        parser.error(f'--jobs must be at least 1, got {args.jobs}')
    if not 0 < args.enough <= 1:
        parser.error(f'--enough must be above 0 and at most 1, got {args.enough}')
    if args.patience < 1:
        parser.error(f'--patience must be at least 1, got {args.patience}')
    args.lr = sorted(args.lr)
    return args


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
    # Who writes a number out means it.
    return label, clip_grad, tune and '=' not in recipe and rule_type(clip_grad) in ADVISED


def make_cells(args: argparse.Namespace, cfg: Config, out: Path) -> list[Cell]:
    """All cells, the first seed of every combination first."""
    rules = [read_rule(text, args.tune == 'advise') for text in args.clip]
    advises = any(advised for _, _, advised in rules)
    advice = advise_all(cfg, out, args.lr, args.report) if advises else {}
    cells = []
    for seed in args.seeds:
        for lr in args.lr:
            for label, clip_grad, advised in rules:
                tuned = 'recipe' if clip_grad else ''
                if advised:
                    name, key = ADVISED[rule_type(clip_grad)]
                    clip_grad = {**clip_grad, key: advice[lr][name][key]}
                    tuned = f'{key} from the advisor'
                cells.append(Cell(lr, label, seed, clip_grad, tuned))
    return cells


def rule_type(clip_grad: dict[str, Any]) -> str:
    """The class of a rule, an alias or a plain MMEngine dict resolved."""
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


def command_of(cell: Cell, args: argparse.Namespace, clips: bool) -> str:
    """What trains a cell alone."""
    words = ['python tools/train.py', args.config]
    options = [f'optim_wrapper.optimizer.lr={cell.lr:g}', f'randomness.seed={cell.seed}']
    options += [f'{k}={v}'.replace(' ', '') for k, v in (args.cfg_options or {}).items()]
    if cell.clip_grad is not None:
        keys = {k: v if k == 'type' else repr(v) for k, v in cell.clip_grad.items()}
        inline = ','.join(f'{k}={v}' for k, v in keys.items()).replace(' ', '')
        words += ['--clip', f'"{inline}"']
    elif clips:
        options.append('optim_wrapper.clip_grad=None')
    return ' '.join([*words, '--cfg-options', *options])


# -- the trainings -------------------------------------------------------------------------------
def context() -> multiprocessing.context.BaseContext:
    """Processes that start with everything imported, where the system can fork."""
    if 'forkserver' not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context('spawn')
    found = multiprocessing.get_context('forkserver')
    found.set_forkserver_preload(['sweep_worker'])
    return found


class Sweep:
    """The cells, what came out of them, and the files that say so."""

    def __init__(self, args: argparse.Namespace, cfg: Config, out: Path) -> None:
        self.args, self.cfg, self.out = args, cfg, out
        self.cells = make_cells(args, cfg, out)
        self.clips = any(w.get('clip_grad') for _, w in optim_wrappers(cfg))
        self.rules = list(dict.fromkeys(c.rule for c in self.cells))
        self.configs = {c: cell_config(cfg, c, self.folder(c)) for c in self.cells}
        self.results: dict[Cell, Outcome] = {}
        for cell in self.cells:
            found = Outcome.load(self.folder(cell) / 'outcome.json')
            # One that failed, for want of memory or a full disk, is given another try.
            if found and (found.status != FAILED or args.report) and self.is_same(cell, found):
                self.keep(cell, found)

    def folder(self, cell: Cell) -> Path:
        return self.out / 'cells' / cell.name

    def is_same(self, cell: Cell, found: Outcome) -> bool:
        return found.fingerprint == fingerprint(self.configs[cell])

    def keep(self, cell: Cell, found: Outcome) -> None:
        if found.status == TRAINED:
            try:
                found.metric = pick_metric(found.metrics, self.args.metric)
            except KeyError as error:
                raise SweepError(f'--metric: {error.args[0]}') from None
        self.results[cell] = found

    def run(self) -> None:
        """Train what is left."""
        todo = [c for c in self.cells if c not in self.results]
        jobs = self.args.jobs or max(torch.cuda.device_count(), 1)
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
            print('\nstopped; the same command goes on from here', file=sys.stderr)
            raise

    def start(self, cell: Cell, slot: int, jobs: int) -> BaseProcess:
        folder = self.folder(cell)
        old = Outcome.load(folder / 'outcome.json')
        sweep_worker.clear(folder, everything=old is not None)
        # What the environment allows (OMP_NUM_THREADS) is shared out.
        threads = max(torch.get_num_threads() // jobs, 1)
        process = context().Process(
            target=sweep_worker.train,
            args=(self.configs[cell], folder, self.args.patience, slot, threads,
                  self.args.keep_checkpoints),
        )  # fmt: skip
        process.start()
        return process

    def finish(self, cell: Cell, exitcode: int | None) -> None:
        found = Outcome.load(self.folder(cell) / 'outcome.json')
        if found is None:
            found = Outcome(FAILED, error=f'the process ended with code {exitcode}')
        self.keep(cell, found)
        self.write()

    def announce(self, cell: Cell, left: float) -> None:
        found = self.results[cell]
        what = {TRAINED: f'{self.args.metric} {found.metric:.3f}'}.get(
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
        """The files, from what is known."""
        from sweep_picture import save_sweep

        rows = [(c, self.results[c], command_of(c, self.args, self.clips))
                for c in self.cells if c in self.results]  # fmt: skip
        write_csv(self.out / 'sweep.csv', rows)
        (self.out / 'sweep.md').write_text(self.text() + '\n')
        save_sweep(
            self.results, self.rules, self.args.lr, enough(self.results, self.args.enough),
            self.args.metric, self.args.title or Path(self.args.config).stem,
            self.out / 'sweep.png',
        )  # fmt: skip

    def text(self) -> str:
        """The table and the summary."""
        rows = summarise(self.results, self.rules, self.args.lr, self.args.enough)
        bound = enough(self.results, self.args.enough)
        return (
            f'{self.args.metric}, mean over {len(self.args.seeds)} seeds (a diverged one counts '
            f'as 0); {len(self.results)} of {len(self.cells)} trainings done\n\n'
            f'{format_grid(self.results, self.rules, self.args.lr)}\n\n'
            f'{format_summary(rows, bound)}'
        )


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    # For the processes: the checkout and this folder, wherever they are started from.
    paths = [str(ROOT), str(Path(__file__).resolve().parent), os.environ.get('PYTHONPATH', '')]
    os.environ['PYTHONPATH'] = os.pathsep.join(p for p in paths if p)
    try:
        cfg = load_config(args.config, args.cfg_options, None, 'none')
        if len(list(optim_wrappers(cfg))) != 1:
            raise SweepError('the config must have one optim_wrapper with an optimizer')
        out = args.out or Path('work_dirs') / 'sweep' / Path(cfg.filename).stem
        out.mkdir(parents=True, exist_ok=True)
        sweep = Sweep(args, cfg, out)
        print(f'{len(sweep.cells)} trainings, {len(sweep.results)} of them done: {out}', flush=True)
        if not args.report:
            sweep.run()
        if not sweep.results:
            raise SweepError(f'nothing has been trained in {out} with these settings')
        sweep.write()
    except (SweepError, LaunchError, AdviceError, gclip_mm.ClipConfigError) as error:
        print(f'stability_sweep.py: error: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(f'\n{sweep.text()}\n\nSaved to {out}: sweep.csv, sweep.md, sweep.png')
    return 0


if __name__ == '__main__':
    sys.exit(main())
