"""Overfits eight ShapeScenes pictures with a config, and measures SGDet on the same pictures.

The detector learns to find the objects and the heads their relations at the same time, from
scratch. Everything is as in the config except data, schedule and flips.

Usage: ``python results/scene_graph/overfit.py CONFIG... --out overfit.csv [--iters 300]``
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from pathlib import Path

from mmengine.config import Config
from mmengine.runner import Runner

import gclip_mm  # noqa: F401

PICTURES = 8
COLUMNS = ('config', 'iters', 'R@20', 'mR@20', 'bbox_mAP', 'scene_top1', 'seconds', 'command')


def overfitting(path: str, iters: int, folder: str) -> Config:
    """The config with eight pictures, which are also those that are evaluated."""
    cfg = Config.fromfile(path)
    params = {**cfg.params, 'num_train': PICTURES, 'num_val': 1}
    train = cfg.train_dataloader
    for loader in (train, cfg.val_dataloader):
        loader.batch_size = PICTURES
        loader.dataset.update(data_root=f'{folder}/data/', params=params)
    same = dict(ann_file=train.dataset.ann_file, data_prefix=train.dataset.data_prefix)
    cfg.val_dataloader.dataset.update(same)
    cfg.test_dataloader = cfg.val_dataloader
    pipeline = train.dataset.pipeline
    train.dataset.pipeline = [step for step in pipeline if step.type != 'RandomFlip']
    cfg.train_cfg.update(max_iters=iters, val_interval=iters)
    warmup, cosine = cfg.param_scheduler
    warmup.update(end=min(50, iters // 4))
    cosine.update(begin=warmup.end, end=iters)
    cfg.default_hooks.checkpoint.interval = iters
    cfg.default_hooks.logger.interval = 50
    cfg.work_dir = f'{folder}/{Path(path).stem}'
    cfg.experiment_name = Path(path).stem
    cfg.visualizer.name = Path(path).stem
    return cfg


def main() -> None:
    """Train each config and append one row of the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('configs', nargs='+')
    parser.add_argument('--out', default='overfit.csv')
    parser.add_argument('--iters', type=int, default=300)
    args = parser.parse_args()
    for path in args.configs:
        with tempfile.TemporaryDirectory() as folder:
            runner = Runner.from_cfg(overfitting(path, args.iters, folder))
            start = time.perf_counter()
            runner.train()
            seconds = time.perf_counter() - start
            hub = runner.message_hub
            keys = [key for key in COLUMNS if key in ('R@20', 'mR@20', 'bbox_mAP', 'scene_top1')]
            row: dict = {
                key: round(float(hub.get_scalar(f'val/sg/{key}').current()), 4) for key in keys
            }
        command = f'python results/scene_graph/overfit.py {path} --iters {args.iters}'
        row.update(
            config=Path(path).stem, iters=args.iters, seconds=round(seconds), command=command
        )
        out = Path(args.out)
        exists = out.is_file()
        with out.open('a', newline='') as file:
            writer = csv.DictWriter(file, COLUMNS)
            if not exists:
                writer.writeheader()
            writer.writerow(row)
        print(row)


if __name__ == '__main__':
    main()
