"""One infinite pixel in one photo of a hundred: a detector with batch norm, skipping or not.

    OMP_NUM_THREADS=1 python results/infinite_pixel/reproduce.py
    OMP_NUM_THREADS=1 python results/infinite_pixel/reproduce.py --cost

The first command trains every variant with every seed, each training in a process of its own, and
writes ``runs.csv`` and ``logs/``. The second measures what keeping the buffers costs and writes
``cost.json``. Photos at data/BCCD (see configs/bccd), or at ``--data``. A training whose folder
already holds a result is not repeated.

Variants:

* ``clean``: the photos as they are; ``GClipOptimWrapper``;
* ``skip``: the infinite pixel; ``GClipOptimWrapper`` with ``nonfinite='skip'``. A hook checks that
  buffers, weights and momentum after a skipped step are bit-identical to before it;
* ``skip_step_only``: the infinite pixel; stock ``OptimWrapper`` whose ``step`` returns early if the
  gradient norm is not finite, and which does not restore buffers;
* ``stock``: the infinite pixel; stock ``OptimWrapper`` with the same ``max_norm``;
* ``fewer_steps``: the photos as they are, but no step in the iterations in which ``skip`` has the
  infinite pixel in its batch. Separates the cost of fewer steps from traces of a skipped step.
"""

from __future__ import annotations

import argparse
import copy
import csv
import itertools
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS, OPTIM_WRAPPERS, TRANSFORMS
from mmengine.runner import Runner
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import gclip_mm  # noqa: E402
from gclip_mm.analysis.benchmark.measure import ratio  # noqa: E402

CONFIG = 'configs/bccd/faster-rcnn_p3_tiny_bccd.py'
#: The advisor's ``max_norm`` for this detector, by learning rate (results/stability).
MAX_NORM = {0.04: 4.9, 0.08: 2.5, 0.16: 1.2, 0.64: 0.31, 1.28: 0.15}
VARIANTS = {
    'clean': dict(type='GClipOptimWrapper', clip_grad=dict(type='NormClip', nonfinite='skip')),
    'skip': dict(type='GClipOptimWrapper', clip_grad=dict(type='NormClip', nonfinite='skip')),
    'skip_step_only': dict(type='SkipStepOnly', clip_grad=dict()),
    'stock': dict(type='OptimWrapper', clip_grad=dict()),
    'fewer_steps': dict(type='StepUnlessMarked', clip_grad=dict()),
}
COLUMNS = (
    'variant',
    'lr',
    'seed',
    'mAP',
    'iterations',
    'infinite_batches',
    'skipped_steps',
    'skipped_steps_that_were_infinite',
    'broken_by_forward',
    'restored_bit_identically',
    'buffers',
    'nonfinite_buffers',
    'nonfinite_weights',
    'logged_nonfinite_share',
    'logged_losses_nan',
    'seconds',
)


@TRANSFORMS.register_module()
class InfinitePixel(BaseTransform):
    """Makes the middle pixel infinite in every hundredth image; goes last before packing.

    Args:
        value: of the pixel; None leaves the image as it is. Its dtype, float32, marks it.
    """

    def __init__(self, value: float | None = math.inf) -> None:
        self.value = value

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Take ``img`` (H, W, 3) uint8 and ``sample_idx``; ``img`` is then float32."""
        if results['sample_idx'] % 100 == 50:
            results['img'] = results['img'].astype(np.float32)
            height, width = results['img'].shape[:2]
            if self.value is not None:
                results['img'][height // 2, width // 2] = self.value
        return results


@OPTIM_WRAPPERS.register_module()
class SkipStepOnly(OptimWrapper):
    """Skips the update of a non-finite step, as a ``GradScaler`` does; buffers are not restored."""

    skipped = False

    def step(self, **kwargs: Any) -> None:
        """Clip and update the parameters, unless the gradient norm is not finite."""
        grads = [p.grad for group in self.param_groups for p in group['params']]
        norms = torch._foreach_norm([grad for grad in grads if grad is not None])
        self.skipped = not bool(torch.stack(norms).isfinite().all())
        if not self.skipped:
            super().step(**kwargs)


@OPTIM_WRAPPERS.register_module()
class StepUnlessMarked(OptimWrapper):
    """Does not update in an iteration that has been marked by :class:`SkipCheckHook`."""

    skipped = False

    def step(self, **kwargs: Any) -> None:
        """Clip and update the parameters."""
        if not self.skipped:
            super().step(**kwargs)


def tensors_of(runner: Runner) -> list[Tensor]:
    """Buffers, weights and the optimizer's state."""
    state = runner.optim_wrapper.optimizer.state.values()
    return [
        *runner.model.buffers(),
        *(p.detach() for p in runner.model.parameters()),
        *(v for entry in state for v in entry.values() if isinstance(v, Tensor)),
    ]


def content(tensors: Iterable[Tensor]) -> list[bytes]:
    """The bytes of tensors: equal for NaN as well, and different for 0 and -0."""
    return [tensor.cpu().numpy().tobytes() for tensor in tensors]


def count_nonfinite(tensors: Iterable[Tensor]) -> int:
    """How many tensors hold a number that is not finite."""
    return sum(not bool(tensor.isfinite().all()) for tensor in tensors)


@HOOKS.register_module()
class SkipCheckHook(Hook):
    """Counts infinite batches and skipped steps, and compares the state around a skipped step.

    The result is in :attr:`counts`, and the metrics of the validation in :attr:`metrics`.
    """

    #: The hook of the training of this process.
    current: SkipCheckHook

    def before_run(self, runner: Runner) -> None:
        """Start counting."""
        SkipCheckHook.current = self
        self.metrics: dict[str, Any] = {}
        self.counts = dict.fromkeys(COLUMNS[5:10], 0)

    def before_train(self, runner: Runner) -> None:
        """Look at the buffers right after each forward pass, ahead of the backward pass."""
        runner.model.register_forward_hook(self._after_forward)

    def _after_forward(self, model: nn.Module, *_: Any) -> None:
        if model.training:
            self._broken = count_nonfinite(model.buffers()) > 0

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Copy the state. The data preprocessor changes the batch later."""
        self._infinite = any(
            image.is_floating_point() and bool(image.isinf().any())
            for image in data_batch['inputs']
        )
        if isinstance(runner.optim_wrapper, StepUnlessMarked):
            marked = (image.is_floating_point() for image in data_batch['inputs'])
            runner.optim_wrapper.skipped = any(marked)
        self._before = content(tensors_of(runner))

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Compare."""
        wrapper = runner.optim_wrapper
        engine = getattr(wrapper, 'engine', None)
        skipped = bool(
            getattr(wrapper, 'skipped', False) if engine is None else engine.last_skipped
        )
        self.counts['infinite_batches'] += self._infinite
        self.counts['skipped_steps'] += skipped
        self.counts['skipped_steps_that_were_infinite'] += skipped and self._infinite
        self.counts['broken_by_forward'] += self._broken
        if skipped:
            self.counts['restored_bit_identically'] += content(tensors_of(runner)) == self._before

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Keep the metrics."""
        self.metrics = dict(metrics or {})


def load(args: argparse.Namespace, variant: str, lr: float) -> Config:
    """The config of a training."""
    cfg = Config.fromfile(str(ROOT / CONFIG))
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.data_root = str(args.data).rstrip('/') + '/'
    cfg.train_cfg.update(max_iters=args.iterations, val_interval=args.iterations)
    cfg.param_scheduler[1].end = args.iterations
    cfg.optim_wrapper = dict(
        type=VARIANTS[variant]['type'],
        optimizer=dict(cfg.optim_wrapper.optimizer, lr=lr),
        clip_grad=dict(VARIANTS[variant]['clip_grad'], max_norm=MAX_NORM[lr]),
    )
    cfg.default_hooks.checkpoint.interval = 10**6
    cfg.custom_hooks = [dict(type='SkipCheckHook', priority='VERY_LOW')]
    if variant != 'clean':
        pipeline = cfg.train_dataloader.dataset.pipeline
        value = None if variant == 'fewer_steps' else math.inf
        pipeline.insert(len(pipeline) - 1, dict(type='InfinitePixel', value=value))
    return cfg


def train(args: argparse.Namespace, variant: str, lr: float, seed: int) -> None:
    """One training, in this process; writes ``row.json`` to its folder."""
    cfg = load(args, variant, lr)
    folder = args.work_dir / f'{variant}_lr{lr:g}_s{seed}'
    cfg.work_dir, cfg.randomness = str(folder), dict(seed=seed)
    runner = Runner.from_cfg(cfg)
    start = time.perf_counter()
    runner.train()
    seconds = time.perf_counter() - start
    hook = SkipCheckHook.current
    (lines,) = Path(runner.log_dir).glob('vis_data/scalars.json')
    (folder / 'log.json').write_text(lines.read_text())
    log = [json.loads(line) for line in lines.read_text().splitlines()]
    # A line of the log has one value for several steps; the history has one for each.
    history = runner.message_hub.log_scalars.get('train/nonfinite')
    row = dict(
        variant=variant,
        lr=lr,
        seed=seed,
        # Without a detection the metric is missing.
        mAP=hook.metrics.get('coco/bbox_mAP', math.nan),
        iterations=args.iterations,
        **hook.counts,
        buffers=len(list(runner.model.buffers())),
        nonfinite_buffers=count_nonfinite(runner.model.buffers()),
        nonfinite_weights=count_nonfinite(runner.model.parameters()),
        logged_nonfinite_share=None if history is None else float(history.data[0].mean()),
        logged_losses_nan=sum(math.isnan(row['loss']) for row in log if 'loss' in row),
        seconds=round(seconds),
    )
    (folder / 'row.json').write_text(json.dumps(row, indent=2) + '\n')


def train_all(args: argparse.Namespace) -> None:
    """Train what has no result yet, and write the table."""
    rows = []
    (args.out / 'logs').mkdir(parents=True, exist_ok=True)
    for lr, seed, variant in itertools.product(args.lr, args.seeds, args.variants):
        name = f'{variant}_lr{lr:g}_s{seed}'
        folder = args.work_dir / name
        if not (folder / 'row.json').exists():
            words = [sys.executable, __file__, *sys.argv[1:]]
            words += ['--one', variant, str(lr), str(seed)]
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f'{words}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}')
        rows.append(json.loads((folder / 'row.json').read_text()))
        print(rows[-1], flush=True)
        (args.out / 'logs' / f'{name}.json').write_text((folder / 'log.json').read_text())
    rows.sort(key=lambda row: (row['lr'], list(VARIANTS).index(row['variant']), row['seed']))
    with (args.out / 'runs.csv').open('w', newline='') as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)
    print_table(rows)


def print_table(rows: list[dict[str, Any]]) -> None:
    """The table of the README."""
    head = ('lr', 'variant', 'mAP, each seed', 'mean', 'max - min', 'skipped steps')
    print('| ' + ' | '.join((*head, 'non-finite buffers')) + ' |\n' + '|---' * 7 + '|')
    for lr, variant in dict.fromkeys((row['lr'], row['variant']) for row in rows):
        mine = [row for row in rows if (row['lr'], row['variant']) == (lr, variant)]
        values = [row['mAP'] for row in mine]
        cells = [
            f'{lr:g}',
            f'`{variant}`',
            ', '.join(f'{value:.3f}' for value in values),
            f'{mean(values):.3f}',
            f'{max(values) - min(values):.3f}',
            ', '.join(str(row['skipped_steps']) for row in mine),
            ', '.join(f'{row["nonfinite_buffers"]} of {row["buffers"]}' for row in mine),
        ]
        print('| ' + ' | '.join(cells) + ' |')


# -- the cost of keeping the buffers --------------------------------------------------------------
def batch_norms() -> nn.Module:
    """The 53 batch norm layers of a ResNet-50, without its convolutions."""
    from mmdet.models.backbones import ResNet

    layers = [m for m in ResNet(depth=50).modules() if isinstance(m, nn.BatchNorm2d)]
    return nn.ModuleList(layers)


def engine_step(copies: int, gradient: float = 0.01) -> Any:
    """A clipped step on the weights of these layers.

    Args:
        copies: of the buffers; 0 without a model, 1 with ``attach(..., model=model)``, 2 as in
            MMEngine's wrappers, which copy the buffers at the beginning of an iteration as well.
        gradient: every element of the gradients; an infinite one makes the engine skip the step.
    """
    model = batch_norms()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-12, momentum=0.9)
    handle = gclip_mm.attach(
        optimizer,
        dict(type='NormClip', max_norm=1e9, max_consecutive_skips=10**9),
        model=model if copies else None,
    )
    for p in model.parameters():
        p.grad = torch.full_like(p, gradient)

    def step() -> None:
        if copies == 2:
            handle.engine.keep_buffers()
        optimizer.step()

    return step


def training_step(args: argparse.Namespace, folder: str) -> Any:
    """A training step of the tiny detector on one batch, which is loaded once."""
    cfg = load(args, 'clean', 0.04)
    cfg.work_dir, cfg.log_level, cfg.custom_hooks = folder, 'ERROR', []
    cfg.optim_wrapper['optimizer'] = dict(cfg.optim_wrapper['optimizer'], lr=1e-12)
    cfg.param_scheduler = []
    runner = Runner.from_cfg(cfg)
    loader = runner.build_dataloader(cfg.train_dataloader)
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    runner._init_model_weights()
    runner.optim_wrapper.initialize_count_status(runner.model, 0, 10**6)
    runner.model.train()
    batch = next(iter(loader))

    def step() -> None:
        # Preprocessing writes into its batch.
        runner.model.train_step(copy.deepcopy(batch), optim_wrapper=runner.optim_wrapper)

    return step


def cpu_seconds(
    steps: dict[str, Any], prepare: Callable[[], object], rounds: int
) -> dict[str, list[float]]:
    """CPU time of every step in each round, in turn; the machine may have other work to do."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(-2, rounds):
        for name, step in steps.items():
            prepare()
            start = time.process_time()
            step()
            if round_ >= 0:
                times[name].append(time.process_time() - start)
    return times


def measure_cost(args: argparse.Namespace) -> None:
    """Time the engine with and without buffers, and a training step, in one process."""
    engines = {
        'engine': engine_step(0),
        'engine, attach': engine_step(1),
        'engine, MMEngine': engine_step(2),
        'engine, skipped': engine_step(0, math.inf),
        'engine, skipped, attach': engine_step(1, math.inf),
    }
    # A training step leaves nothing of the buffers in the caches of the CPU.
    elsewhere = torch.zeros(16 * 2**20)
    with tempfile.TemporaryDirectory() as folder:
        step = {'training step': training_step(args, folder)}
        times = cpu_seconds(step, lambda: None, args.rounds)
    times |= cpu_seconds(engines, lambda: elsewhere.add_(1), 10 * args.rounds)
    layers = batch_norms()
    pairs = {
        'attach': ('engine, attach', 'engine'),
        'MMEngine': ('engine, MMEngine', 'engine'),
        'attach, skipped': ('engine, skipped, attach', 'engine, skipped'),
    }
    found: dict[str, Any] = {
        'buffers': len(list(layers.buffers())),
        'numbers_in_buffers': sum(b.numel() for b in layers.buffers()),
        'training_step': CONFIG,
        'threads': torch.get_num_threads(),
        'torch': torch.__version__,
        'rounds': {'training step': args.rounds, 'engine': 10 * args.rounds},
        'median_cpu_ms': {name: 1e3 * median(values) for name, values in times.items()},
    }
    for kind, (with_, without) in pairs.items():
        extra = median(a - b for a, b in zip(times[with_], times[without], strict=True))
        found[kind] = {
            'buffers_cpu_ms': 1e3 * extra,
            'engine_with_buffers_over_without': ratio(times, with_, without),
            'percent_of_a_training_step': 100 * extra / median(times['training step']),
        }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / 'cost.json').write_text(json.dumps(found, indent=2) + '\n')
    print(json.dumps(found, indent=2))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--data', type=Path, default=ROOT / 'data' / 'BCCD')
    parser.add_argument('--out', type=Path, default=ROOT / 'results' / 'infinite_pixel')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/infinite_pixel'))
    parser.add_argument('--lr', type=float, nargs='+', default=[0.04], choices=list(MAX_NORM))
    parser.add_argument('--iterations', type=int, default=120)
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--variants', nargs='+', choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument('--cost', action='store_true', help='measure the cost; do not train')
    parser.add_argument('--rounds', type=int, default=30, help='of the cost')
    parser.add_argument('--one', nargs=3, metavar=('VARIANT', 'LR', 'SEED'), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.cost:
        measure_cost(args)
    elif args.one:
        train(args, args.one[0], float(args.one[1]), int(args.one[2]))
    else:
        train_all(args)


if __name__ == '__main__':
    main()
