"""Measures what GClipMonitorHook and GClipSpikeHook cost, in shares of a training step.

    python results/monitor/reproduce.py --out results/monitor

Trains the quickstart detector with both hooks and takes the time spent within their own calls. The
monitor watches every fifth step here and draws a histogram at every tenth, for enough of both to
measure; the shares are worked out for its defaults.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.runner import Runner

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import gclip_mm  # noqa: E402, F401  registers the hooks
from gclip_mm.engine.hooks.monitor_hook import GClipMonitorHook  # noqa: E402
from gclip_mm.engine.hooks.spike_hook import GClipSpikeHook  # noqa: E402
from gclip_mm.engine.telemetry.module_probe import ModuleProbe  # noqa: E402
from gclip_mm.engine.telemetry.spike_record import _StepMeasurer  # noqa: E402

CONFIG = 'configs/quickstart/faster-rcnn_tiny_shapescenes.py'
spent: dict[str, list[float]] = defaultdict(list)
depth = 0


def timed(owner: type, name: str, key: str) -> None:
    """Add up the time spent in a method, not counting timed calls within it twice."""
    method = getattr(owner, name)

    @functools.wraps(method)
    def call(*args, **kwargs):
        global depth
        depth += 1
        begin = time.perf_counter()
        try:
            return method(*args, **kwargs)
        finally:
            depth -= 1
            if depth == 0:
                spent[key].append(time.perf_counter() - begin)

    setattr(owner, name, call)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', type=Path, default=ROOT / 'results' / 'monitor')
    parser.add_argument('--iterations', type=int, default=60)
    args = parser.parse_args()
    for name in ('before_clip', 'after_clip'):
        timed(ModuleProbe, name, 'monitor')
    for name in ('before_train_iter', 'after_train_iter'):
        timed(GClipMonitorHook, name, 'monitor')
        timed(GClipSpikeHook, name, 'spikes')
    for name in ('before_clip', 'on_record'):
        timed(_StepMeasurer, name, 'spikes')
    cfg = Config.fromfile(str(ROOT / CONFIG))
    cfg.optim_wrapper = dict(
        type='GClipOptimWrapper',
        optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.01, fused=True),
        clip_grad=dict(type='NormClip', max_norm=5.0),
    )
    with tempfile.TemporaryDirectory() as folder:
        cfg.work_dir = folder
        cfg.train_cfg = dict(
            type='IterBasedTrainLoop', max_iters=args.iterations, val_interval=10**6
        )
        cfg.log_level = 'ERROR'
        cfg.custom_hooks = [
            dict(type='GClipMonitorHook', interval=5, histogram_interval=10),
            dict(type='GClipSpikeHook'),
        ]
        steps: list[dict[str, float]] = []
        runner = Runner.from_cfg(cfg)
        run_iter = type(runner.build_train_loop(runner._train_loop)).run_iter

        def run_iter_timed(loop, batch):
            spent.clear()
            begin = time.perf_counter()
            run_iter(loop, batch)
            row = {key: sum(values) for key, values in spent.items()}
            steps.append({'step': time.perf_counter() - begin, **row})

        loop = runner.build_train_loop(runner._train_loop)
        type(loop).run_iter = run_iter_timed
        runner.train()
    # The first steps warm up.
    steps = list(enumerate(steps, 1))[10:]
    plain = [row for i, row in steps if i % 5]
    watched = [row['monitor'] for i, row in steps if i % 10 == 5]
    drawn = [row['monitor'] for i, row in steps if i % 10 == 0]
    step = float(np.median([row['step'] for row in plain]))
    idle, watch, histogram = (
        float(np.median(x)) for x in ([row['monitor'] for row in plain], watched, drawn)
    )
    defaults = GClipMonitorHook()
    mean = idle + watch / defaults.interval + (histogram - watch) / defaults.histogram_interval
    spike = float(np.median([row['spikes'] for row in plain]))
    content = {
        'config': CONFIG,
        'device': 'cpu',
        'threads': torch.get_num_threads(),
        'step_seconds': step,
        'monitor_seconds': {
            'step_not_watched': idle,
            'step_watched': watch,
            'step_with_histograms': histogram,
        },
        'monitor_share_of_a_step_at_defaults': mean / step,
        'spike_hook_seconds': spike,
        'spike_hook_share_of_a_step': spike / step,
        'command': 'python results/monitor/reproduce.py',
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / 'cost.json').write_text(json.dumps(content, indent=2) + '\n')
    print(json.dumps(content, indent=2))


if __name__ == '__main__':
    main()
