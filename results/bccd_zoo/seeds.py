"""Trains the best cell of each detector and rule again, with other seeds.

Reads ``table.csv``, which ``collect.py`` writes, and adds ``seeds.csv``: the cells were chosen by
seed 0, so that only the other seeds say how good they are. A training that is done is not repeated.

Example:
    OMP_NUM_THREADS=1 python results/bccd_zoo/seeds.py work_dirs/bccd_zoo_seeds --seeds 1 2
"""

from __future__ import annotations

import argparse
import csv
import shlex
import subprocess
import sys
from pathlib import Path
from statistics import mean

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

from gclip_mm.analysis.run_files import RunFilesError, main_metric, read_scalars  # noqa: E402

COLUMNS = ('detector', 'rule', 'lr', 'seed', 'mAP', 'command')


def metric(work_dir: Path) -> float | None:
    """The mAP of the last validation of a run, or None."""
    try:
        return main_metric(read_scalars(work_dir))
    except RunFilesError:
        return None


def train(row: dict[str, str], seed: int, folder: Path) -> dict[str, str]:
    """A row of ``seeds.csv``."""
    command = row['command'].replace('randomness.seed=0', f'randomness.seed={seed}')
    work_dir = folder / f'{row["detector"]}_{row["rule"]}_s{seed}'
    if metric(work_dir) is None:
        words = [sys.executable, *shlex.split(command)[1:], '--work-dir', str(work_dir)]
        subprocess.run(words, cwd=ROOT, check=True)
    found = metric(work_dir)
    # MMDetection reports none where nothing was detected at all.
    text = '' if found is None else f'{found:.4f}'
    cell = (row['detector'], row['rule'], row['best_lr'], seed, text, command)
    return dict(zip(COLUMNS, cell, strict=True))


def print_table(best: list[dict[str, str]], rows: list[dict[str, str]]) -> None:
    """Mean over all seeds and each of them, for the README."""
    rules = list(dict.fromkeys(row['rule'] for row in best))
    print('| detector | ' + ' | '.join(rules) + ' |\n' + '|---' * (len(rules) + 1) + '|')
    for detector in dict.fromkeys(row['detector'] for row in best):
        texts = []
        for row in best:
            if row['detector'] == detector:
                others = [r for r in rows if (r['detector'], r['rule']) == (detector, row['rule'])]
                values = [float(r['mAP'] or 0) for r in (row, *others)]
                each = ', '.join(f'{value:.3f}' for value in values)
                texts.append(f'{mean(values):.3f} ({each})')
        print(f'| {detector} | ' + ' | '.join(texts) + ' |')


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('folder', type=Path, help='where the trainings write')
    parser.add_argument('--seeds', type=int, nargs='+', default=[1, 2], help='(%(default)s)')
    args = parser.parse_args()
    with (HERE / 'table.csv').open(newline='') as file:
        best = list(csv.DictReader(file))
    rows = [train(row, seed, args.folder.resolve()) for row in best for seed in args.seeds]
    with (HERE / 'seeds.csv').open('w', newline='') as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)
    print_table(best, rows)


if __name__ == '__main__':
    main()
