"""What clipping costs a whole training step: the quickstart with every rule, against none.

    python results/throughput/reproduce.py --out results/throughput

One Runner a rule in one process, all hooks included and GClipMonitorHook at its default, stepping
in turn on the same batches; the ratio is the median of the ratios to the unclipped Runner, round by
round. The learning rate is next to nothing, so that all of them compute the same.
"""

from __future__ import annotations

import argparse
import copy
import csv
import itertools
import sys
import tempfile
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.runner import Runner

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from gclip_mm.analysis.benchmark.measure import ratio, time_in_turn  # noqa: E402
from gclip_mm.clipping import CLIPPERS  # noqa: E402

CONFIG = 'configs/quickstart/faster-rcnn_tiny_shapescenes.py'


def build(rule: str | None, folder: str) -> Runner:
    """A Runner that is ready for its first iteration."""
    cfg = Config.fromfile(str(ROOT / CONFIG))
    cfg.work_dir, cfg.experiment_name, cfg.log_level = folder, f'throughput_{rule}', 'ERROR'
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=10**6, val_interval=10**6)
    # AdamW and not the quickstart's SGD: GradientStabilizer works with no other kind.
    optimizer = dict(type='AdamW', lr=1e-12, weight_decay=0.01, fused=True)
    wrapper = dict(type='OptimWrapper', optimizer=optimizer)
    if rule is not None:
        clip_grad = dict(type=rule, **CLIPPERS.get(rule).example)
        wrapper.update(type='GClipOptimWrapper', clip_grad=clip_grad)
        cfg.custom_hooks = [dict(type='GClipMonitorHook')]
    cfg.optim_wrapper, cfg.param_scheduler = wrapper, []
    runner = Runner.from_cfg(cfg)
    # What Runner.train does before its loop runs.
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    runner.call_hook('before_run')
    runner._init_model_weights()
    runner.optim_wrapper.initialize_count_status(runner.model, 0, 10**6)
    for point in ('before_train', 'before_train_epoch'):
        runner.call_hook(point)
    runner.model.train()
    return runner


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', type=Path, default=ROOT / 'results' / 'throughput')
    parser.add_argument('--rounds', type=int, default=20)
    parser.add_argument('--only', nargs='+', help='rules (default: all)')
    args = parser.parse_args()
    rules = args.only or list(CLIPPERS)
    with tempfile.TemporaryDirectory() as folder:
        runners = {str(rule): build(rule, folder) for rule in [None, *rules]}
        batches = iter(runners['None'].train_loop.dataloader_iterator)
        turns = itertools.count()

        def prepare() -> None:
            nonlocal batch, mine
            if next(turns) % len(runners) == 0:
                batch = next(batches)
            # Preprocessing writes into its batch.
            mine = copy.deepcopy(batch)

        batch = mine = None
        steps = {
            name: (lambda loop=runner.train_loop: loop.run_iter(mine))
            for name, runner in runners.items()
        }
        times = time_in_turn(steps, prepare, torch.device('cpu'), args.rounds)
    args.out.mkdir(parents=True, exist_ok=True)
    with (args.out / 'throughput.csv').open('w', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(['rule', 'step_over_unclipped', 'median_seconds', 'rounds', 'threads'])
        for name in runners:
            middle = sorted(times[name])[len(times[name]) // 2]
            row = [name, f'{ratio(times, name, "None"):.4f}', f'{middle:.4f}', args.rounds]
            writer.writerow([*row, torch.get_num_threads()])
            print(*row)


if __name__ == '__main__':
    main()
