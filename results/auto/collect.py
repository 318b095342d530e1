"""The table of the study, from the sweeps of several detectors.

Reads ``sweep.csv`` of each folder that ``gclip sweep`` has written, adds the trainings of the other
rules from ``results/bccd_zoo/cells.csv``, writes ``cells.csv`` (every training read here), and
prints the tables of the README.

Example:
    python results/auto/collect.py work_dirs/auto
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from pathlib import Path
from statistics import mean

HERE = Path(__file__).resolve().parent
ZOO = HERE.parent / 'bccd_zoo' / 'cells.csv'

Row = dict[str, str]


def read(file: Path, **more: str) -> list[Row]:
    """The rows of a CSV file; ``more`` goes in front of each."""
    with file.open(newline='') as stream:
        return [{**more, **row} for row in csv.DictReader(stream)]


def metric(row: Row) -> float:
    """The mAP; a training that diverged counts as 0."""
    return float(row['metric'] or 0) if row['status'] == 'trained' else 0.0


def write(rows: list[Row]) -> None:
    """Write ``cells.csv``."""
    with (HERE / 'cells.csv').open('w', newline='') as stream:
        writer = csv.DictWriter(stream, list(rows[0]), extrasaction='ignore', lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)


def print_table(title: str, rows: list[Row]) -> None:
    """A line a rule, a column a learning rate: the mean, and the number of seeds."""
    cells: dict[tuple[str, float], list[float]] = defaultdict(list)
    for row in rows:
        cells[row['rule'], float(row['lr'])].append(metric(row))
    rates = sorted({rate for _, rate in cells})
    print(f'\n{title}\n\n| rule | ' + ' | '.join(f'lr {rate:g}' for rate in rates) + ' |')
    print('|---' * (len(rates) + 1) + '|')
    for rule in dict.fromkeys(row['rule'] for row in rows):
        texts = []
        for rate in rates:
            found = cells.get((rule, rate))
            texts.append(f'{mean(found):.3f} ({len(found)})' if found else '')
        print(f'| {rule} | ' + ' | '.join(texts) + ' |')


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('folder', type=Path, help='a folder with a folder for each detector')
    folder = parser.parse_args().folder
    others = read(ZOO)
    rows: list[Row] = []
    for sweep in sorted(folder.glob('*/sweep.csv')):
        name = sweep.parent.name
        own = read(sweep, detector=name)
        rows += own
        print_table(name, own + [row for row in others if row['detector'] == name])
    write(rows)


if __name__ == '__main__':
    main()
