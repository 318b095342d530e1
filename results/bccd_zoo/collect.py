"""Two tables, and the logs, of the sweeps of several detectors.

Reads what ``tools/analysis/stability_sweep.py`` wrote to a folder for each detector, and writes
``cells.csv`` (every training), ``table.csv`` (of each detector and rule the training with the best
metric) and ``logs/`` (MMEngine's JSON logs of those).

Example:
    python tools/analysis/stability_sweep.py configs/bccd/ssd_tiny_bccd.py --lr 0.02 0.08 0.32 \\
        --clip none value norm agc --seeds 0 --out work_dirs/bccd_zoo/ssd
    python results/bccd_zoo/collect.py work_dirs/bccd_zoo
"""

from __future__ import annotations

import argparse
import csv
import shutil
from pathlib import Path

HERE = Path(__file__).resolve().parent
CONFIG = 'configs/bccd/{detector}_tiny_bccd.py'


def read_detector(folder: Path) -> list[dict[str, str]]:
    """The trainings of one detector, in the order of the sweep."""
    with (folder / 'sweep.csv').open(newline='') as file:
        return [{'detector': folder.name, **row} for row in csv.DictReader(file)]


def best(rows: list[dict[str, str]]) -> dict[str, str]:
    """The training with the best metric; of several, that with the lowest learning rate."""
    return max(rows, key=lambda row: (float(row['metric'] or 0), -float(row['lr'])))


def keep_log(folder: Path, row: dict[str, str]) -> str:
    """Copy the log of a training; returns its path below this folder."""
    cell = folder / 'cells' / f'{row["rule"]}_lr{float(row["lr"]):g}_seed{row["seed"]}'
    log = sorted(cell.glob('*/vis_data/scalars.json'))[-1]
    target = HERE / 'logs' / f'{row["detector"]}_{row["rule"]}.json'
    target.parent.mkdir(exist_ok=True)
    shutil.copyfile(log, target)
    return target.relative_to(HERE).as_posix()


def write(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open('w', newline='') as file:
        writer = csv.DictWriter(file, list(rows[0]), extrasaction='ignore', lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)


def print_tables(cells: list[dict[str, str]], table: list[dict[str, str]]) -> None:
    """The best of each rule, and every training, for the README."""
    rules = list(dict.fromkeys(row['rule'] for row in table))
    print('| detector | ' + ' | '.join(rules) + ' |\n' + '|---' * (len(rules) + 1) + '|')
    for detector in dict.fromkeys(row['detector'] for row in table):
        found = {row['rule']: row for row in table if row['detector'] == detector}
        top = max(float(row['mAP'] or 0) for row in found.values())
        texts = []
        for rule in rules:
            row = found[rule]
            text = f'{float(row["mAP"]):.3f}'
            bold = '**' if float(row['mAP']) == top else ''
            texts.append(f'{bold}{text}{bold} (lr {row["best_lr"]})')
        print(f'| {detector} | ' + ' | '.join(texts) + ' |')
    print('\n| detector | lr | ' + ' | '.join(rules) + ' |\n' + '|---' * (len(rules) + 2) + '|')
    for detector, lr in dict.fromkeys((row['detector'], row['lr']) for row in cells):
        found = {r['rule']: r for r in cells if (r['detector'], r['lr']) == (detector, lr)}
        texts = [
            f'{float(r["metric"]):.3f}' if r['status'] == 'trained' else r['status']
            for r in (found[rule] for rule in rules)
        ]
        print(f'| {detector} | {lr} | ' + ' | '.join(texts) + ' |')


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('sweeps', type=Path, help='folder with a sweep for each detector')
    args = parser.parse_args()
    folders = sorted(path.parent for path in args.sweeps.glob('*/sweep.csv'))
    if not folders:
        parser.error(f'no */sweep.csv in {args.sweeps}')
    cells, table = [], []
    for folder in folders:
        rows = read_detector(folder)
        cells += rows
        for rule in dict.fromkeys(row['rule'] for row in rows):
            found = best([row for row in rows if row['rule'] == rule])
            lived = [row for row in rows if row['rule'] == rule and row['status'] == 'trained']
            table.append(
                {
                    'detector': folder.name,
                    'rule': rule,
                    'best_lr': found['lr'],
                    'mAP': found['metric'],
                    'largest_lr_alive': max((row['lr'] for row in lived), key=float, default=''),
                    'clip_grad': found['clip_grad'],
                    'config': CONFIG.format(detector=folder.name),
                    'log': keep_log(folder, found),
                    'command': found['command'],
                }
            )
    write(HERE / 'cells.csv', [{k: v for k, v in row.items() if k != 'seconds'} for row in cells])
    write(HERE / 'table.csv', table)
    print_tables(cells, table)


if __name__ == '__main__':
    main()
