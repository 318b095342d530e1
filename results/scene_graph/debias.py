"""Each debiasing against none on long-tailed ShapeScenes: R, mR, F1, and head, body and tail.

Trains PredCls without a context three times a seed: plainly, with CountWeightedCrossEntropy and
with PredicateResampling. LogitAdjustment and TDE change prediction only, so they are evaluated on
the weights of the plain training. `--table` prints the table of the README from the CSV.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from mmdet.registry import MODELS
from mmengine.config import Config, ConfigDict
from mmengine.runner import Runner

import gclip_mm  # noqa: F401  registers everything
from gclip_mm.scene_graph.engine.frequency_bias_hook import count_relations

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / 'configs/scene_graph/shapescenes/identity_predcls_shapescenes.py'
TRAININGS = ('none', 'CountWeightedCrossEntropy', 'PredicateResampling')
TAUS = (0.3, 0.6, 1.0)
COLUMNS = ('R@5', 'mR@5', 'F1@5', 'R@20', 'mR@20', 'F1@20')
GROUPS = ('head_mR@20', 'body_mR@20', 'tail_mR@20')


def config(args: argparse.Namespace, training: str, seed: int) -> Config:
    """The config of a training."""
    cfg = Config.fromfile(CONFIG)
    params = dict(num_train=1000, num_val=400, image_size=(96, 80), seed=0, long_tail=10.0)
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.data_root = f'{args.data}/'
        loader.dataset.params = params
        loader.dataset.pipeline[2].scale = (96, 80)
    cfg.model.relation_head.debias = dict(type='TDE', momentum=0.01)
    cfg.model.relation_head.dropout = 0.0
    if training == 'CountWeightedCrossEntropy':
        cfg.model.relation_head.loss_predicate = dict(type=training, beta=0.999)
    if training == 'PredicateResampling':
        # A tenth of the predicates is the mean share here, as 0.02 is on VG150.
        inner = cfg.train_dataloader.dataset
        cfg.train_dataloader.dataset = ConfigDict(type=training, dataset=inner, threshold=0.06)
    metric = dict(ks=(5, 20), train_ann_file=f'{args.data}/annotations/train.json')
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        evaluator.update(**metric, predicate_groups='thirds')
    cfg.train_cfg.update(max_iters=args.iters, val_interval=10 * args.iters)
    cfg.param_scheduler[0].end = cfg.param_scheduler[1].begin = args.iters // 10
    cfg.param_scheduler[1].end = args.iters
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', interval=10 * args.iters)
    cfg.randomness = dict(seed=seed)
    cfg.work_dir = str(args.work / f'{training}_{seed}')
    cfg.experiment_name = f'debias_{training}_{seed}'
    cfg.visualizer.name = cfg.experiment_name
    return cfg


def run(args: argparse.Namespace, training: str, seed: int) -> list[dict[str, Any]]:
    """Train once; returns a row for each debiasing that is evaluated on the weights."""
    start = time.process_time()
    runner = Runner.from_cfg(config(args, training, seed))
    runner.train()
    seconds = round(time.process_time() - start)
    head = runner.model.relation_head
    trained = head.debias
    choices: dict[str, Any] = {training: None}
    if training == 'none':
        choices['TDE'] = trained
        for tau in TAUS:
            cfg = dict(type='LogitAdjustment', tau=tau, num_predicates=head.num_predicates)
            choices[f'LogitAdjustment {tau}'] = MODELS.build(cfg)
            counts = count_relations(runner.train_dataloader.dataset, only_overlapping=False)
            choices[f'LogitAdjustment {tau}'].set_counts(*counts)
    rows = []
    for name, debias in choices.items():
        head.debias = debias
        with torch.no_grad():
            metrics = runner.val_loop.run()
        figures = {key: round(metrics[f'sg/{key}'], 4) for key in (*COLUMNS, *GROUPS)}
        rows.append(
            dict(debias=name, seed=seed, iterations=args.iters, cpu_seconds=seconds, **figures)
        )
    return rows


def table(path: Path) -> str:
    """Mean and standard deviation over the seeds, as Markdown."""
    with path.open() as stream:
        rows = list(csv.DictReader(stream))
    shown = (*COLUMNS[3:], *GROUPS)
    lines = ['| debiasing | ' + ' | '.join(shown) + ' |', '|---' * (len(shown) + 1) + '|']
    for name in dict.fromkeys(row['debias'] for row in rows):
        cells = []
        for key in shown:
            values = [float(row[key]) for row in rows if row['debias'] == name]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f'{statistics.mean(values):.3f} ± {spread:.3f}')
        lines.append(f'| {name} | ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--out', type=Path, default=Path(__file__).with_name('debias.csv'))
    parser.add_argument('--data', default='data/shape_scenes_long_tail')
    parser.add_argument('--work', type=Path, default=Path('work_dirs/debias'))
    parser.add_argument('--iters', type=int, default=300)
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--table', action='store_true', help='print the table and stop')
    args = parser.parse_args()
    if args.table:
        print(table(args.out))
        return
    torch.set_num_threads(1)
    for seed in args.seeds:
        for training in TRAININGS:
            rows = run(args, training, seed)
            exists = args.out.exists()
            with args.out.open('a', newline='') as stream:
                writer = csv.DictWriter(stream, rows[0], lineterminator='\n')
                if not exists:
                    writer.writeheader()
                writer.writerows(rows)
    print(table(args.out))


if __name__ == '__main__':
    main()
