"""One table of the scene-graph runs in a folder, and their logs beside it.

Reads what training wrote (MMEngine's JSON log) and nothing else; the logs go to ``logs/`` in the
table's folder.

Example:
    python tools/train.py configs/scene_graph/shapescenes/rnn_predcls_shapescenes.py \\
        --work-dir work_dirs/sg/rnn_predcls
    python results/scene_graph/collect.py work_dirs/sg --out results/scene_graph/shapescenes.csv
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
from pathlib import Path

from mmengine.config import Config

METRICS = ('R@20', 'mR@20', 'ngR@20', 'ngmR@20', 'A@20', 'scene_top1', 'bbox_mAP', 'bbox_mAP_50')
CONFIG = 'configs/scene_graph/shapescenes/{name}_shapescenes.py'


def read_run(folder: Path, out: Path) -> dict[str, str | float] | None:
    """The last validation of the latest run in a work dir; None where there is none.

    Its log is copied to ``out/logs``.
    """
    logs = sorted(folder.glob('*/vis_data/scalars.json'))
    if not logs:
        return None
    lines = [json.loads(line) for line in logs[-1].read_text().splitlines() if line.strip()]
    train = [line for line in lines if 'loss' in line]
    validated = [line for line in lines if 'sg/R@20' in line]
    if not validated or not train:
        return None
    # An entry's time is the mean of the iterations since the one before.
    steps = [b['step'] - a for a, b in zip([0, *(t['step'] for t in train)], train, strict=False)]
    seconds = sum(line['time'] * step for line, step in zip(train, steps, strict=True))
    context, protocol = folder.name.split('_')[:2]
    row: dict[str, str | float] = dict(context=context, protocol=protocol)
    row.update(iterations=train[-1]['step'], train_seconds=round(seconds))
    for key in METRICS:
        value = validated[-1].get(f'sg/{key}')
        row[key] = '' if value is None else round(value, 4)
    row['config'] = CONFIG.format(name=folder.name)
    row['log'] = f'logs/{folder.name}.json'
    row['command'] = f'python tools/train.py {row["config"]}{clipped_at(train[-1], row["config"])}'
    (out / 'logs').mkdir(parents=True, exist_ok=True)
    shutil.copyfile(logs[-1], out / row['log'])
    return row


def clipped_at(line: dict, config: str) -> str:
    """The option that gives the threshold of a run, where that of its config is another one now."""
    limit = Config.fromfile(config).optim_wrapper.clip_grad.get('max_norm')
    ran = line.get('clip_threshold')
    if ran is None or limit is None or abs(ran - limit) < 1e-6 * limit:
        return ''
    return f' --cfg-options optim_wrapper.clip_grad.max_norm={ran:g}'


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('runs', type=Path, help='folder of the work dirs, each named as its config')
    parser.add_argument('--out', type=Path, required=True, help='CSV to write')
    args = parser.parse_args()
    folders = sorted(args.runs.iterdir())
    rows = [row for folder in folders if (row := read_run(folder, args.out.parent))]
    if not rows:
        parser.error(f'no finished run in {args.runs}')
    with args.out.open('w', newline='') as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        print({key: value for key, value in row.items() if key != 'command'})


if __name__ == '__main__':
    main()
