"""Measures the advisor: each of its thresholds trained on BCCD at each learning rate.

    python results/advisor/reproduce.py --out results/advisor

Takes about two minutes of two CPU cores for each of the eight trainings. Photos at data/BCCD (see
configs/bccd). A training whose folder already holds a result is not repeated.
"""

from __future__ import annotations

import argparse
import csv
import json
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONFIG = 'configs/bccd/faster-rcnn_tiny_bccd_none.py'
#: The rules with a threshold; trainings with Auto are in results/auto.
RULES = ('value', 'norm', 'agc', 'zclip')
COLUMNS = ('lr', 'rule', 'clip_grad', 'mAP', 'mAP50', 'last_loss', 'clipped_in_advice', 'command')


def run(command: list[str], prefix: list[str]) -> str:
    """Run a command from the root of the checkout; what it printed."""
    print('+', shlex.join(command), flush=True)
    done = subprocess.run(
        [*prefix, *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f'{shlex.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}')
    return done.stdout


def result(work_dir: Path) -> dict | None:
    """The last metrics and the last loss of a finished run."""
    found: dict = {}
    for path in sorted(work_dir.glob('*/vis_data/scalars.json')):
        for row in map(json.loads, path.read_text().splitlines()):
            if 'coco/bbox_mAP' in row:
                found |= {'mAP': row['coco/bbox_mAP'], 'mAP50': row['coco/bbox_mAP_50']}
            elif 'loss' in row:
                found['last_loss'] = row['loss']
    return found if 'mAP' in found else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', type=Path, default=ROOT / 'results' / 'advisor')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/advisor'))
    parser.add_argument('--lr', type=float, nargs='+', default=[0.16, 1.0])
    parser.add_argument('--config', default=CONFIG)
    parser.add_argument('--prefix', default='', help='put before each command, as "nice"')
    args = parser.parse_args()
    prefix = shlex.split(args.prefix)
    rows = []
    for lr in args.lr:
        folder = args.work_dir / f'advice_lr{lr:g}'
        stats = args.work_dir / f'advice_lr{args.lr[0]:g}' / 'stats.npz'
        command = ['python', 'tools/analysis/advise_clipping.py', args.config, '--lr', f'{lr:g}']
        command += ['--out', str(folder)]
        # What was recorded serves for every rate: that is the point of --lr.
        command += ['--reuse', str(stats)] if (ROOT / stats).exists() else []
        if not (ROOT / folder / 'advice.json').exists():
            run(command, prefix)
        advice = json.loads((ROOT / folder / 'advice.json').read_text())
        for item in advice['advice']:
            name = item['name']
            if name not in RULES:
                continue
            work_dir = args.work_dir / f'{name}_lr{lr:g}'
            command = ['python', 'tools/train.py', str(folder / f'{name}.py')]
            command += ['--work-dir', str(work_dir)]
            if result(ROOT / work_dir) is None:
                run(command, prefix)
            measured = result(ROOT / work_dir) or {}
            rows.append(
                {
                    'lr': lr,
                    'rule': name,
                    'clip_grad': json.dumps(item['clip_grad']),
                    **measured,
                    'clipped_in_advice': round(item['clipped'], 4),
                    'command': shlex.join(command),
                }
            )
            print(rows[-1], flush=True)
            args.out.mkdir(parents=True, exist_ok=True)
            with (args.out / 'trainings.csv').open('w', newline='') as file:
                writer = csv.DictWriter(file, COLUMNS)
                writer.writeheader()
                writer.writerows(rows)


if __name__ == '__main__':
    main()
