"""Which learning rates each context survives under each rule: one table, one picture.

Reads what ``tools/analysis/stability_sweep.py`` wrote to folders whose names begin with that of a
context, and writes ``stability.csv``, ``stability.png`` and, on the screen, the tables of the
README. What a later folder has of a rule at a learning rate takes the place of an earlier one's.

Example:
    python results/scene_graph/stability.py work_dirs/sgstab/* work_dirs/sgnorm/*
"""

from __future__ import annotations

import argparse
import csv
import statistics
from pathlib import Path

import matplotlib

matplotlib.use('Agg')  # no display is needed, nor looked for

import matplotlib.pyplot as plt

HERE = Path(__file__).resolve().parent
CONTEXTS = {'rnn': 'RNN', 'crnn': 'CRNN', 'transformer': 'Transformer'}
#: Of Okabe and Ito, told apart by everybody; no clipping is black.
COLORS = {
    'none': 'black',
    'value': '#0072B2',
    'norm': '#D55E00',
    'tight': '#E69F00',
    'agc': '#009E73',
    'zclip': '#CC79A7',
}
LABELS = {'none': 'no clipping', 'tight': 'norm, by hand', 'agc': 'AGC', 'zclip': 'ZClip'}
Rows = list[dict[str, str]]


def read(folders: list[Path]) -> dict[str, Rows]:
    """The trainings of each context."""
    tables: dict[str, Rows] = {name: [] for name in CONTEXTS}
    for folder in folders:
        name = folder.name.partition('_')[0]
        with (folder / 'sweep.csv').open(newline='') as file:
            rows = list(csv.DictReader(file))
        for row in rows:
            del row['seconds']  # of a machine that did other work too
        news = {(row['rule'], row['lr']) for row in rows}
        kept = [row for row in tables[name] if (row['rule'], row['lr']) not in news]
        tables[name] = kept + [{'context': name, **row} for row in rows]
    return tables


def cells(rows: Rows) -> dict[tuple[str, float], list[float]]:
    """The metric of each seed by rule and learning rate; a diverged one counts as 0."""
    found: dict[tuple[str, float], list[float]] = {}
    for row in rows:
        lived = row['status'] == 'trained'
        found.setdefault((row['rule'], float(row['lr'])), []).append(
            float(row['metric']) if lived else 0.0
        )
    return found


def print_table(rows: Rows) -> None:
    found = cells(rows)
    lrs = sorted({lr for _, lr in found})
    print('| rule | ' + ' | '.join(f'lr {lr:g}' for lr in lrs) + ' |')
    print('|---' * (len(lrs) + 1) + '|')
    for rule in COLORS:
        texts = []
        for lr in lrs:
            values = found.get((rule, lr))
            if values is None:
                texts.append('')
                continue
            lost = sum(
                r['status'] == 'diverged'
                for r in rows
                if r['rule'] == rule and float(r['lr']) == lr
            )
            spread = f' ± {statistics.stdev(values):.3f}' if len(values) > 1 and not lost else ''
            text = f'{statistics.mean(values):.3f}{spread}'
            texts.append(text + (f' ({lost}/{len(values)} diverged)' if lost else ''))
        print(f'| {LABELS.get(rule, rule)} | ' + ' | '.join(texts) + ' |')


def draw(tables: dict[str, Rows], path: Path) -> None:
    figure, panels = plt.subplots(
        1, len(tables), figsize=(4.6 * len(tables), 4.4), sharey=True, layout='constrained'
    )
    for axes, (context, rows) in zip(panels, tables.items(), strict=True):
        found = cells(rows)
        lrs = sorted({lr for _, lr in found})
        for i, (rule, color) in enumerate(COLORS.items()):
            shift = 10.0 ** (0.035 * (i - (len(COLORS) - 1) / 2))
            tried = [lr for lr in lrs if (rule, lr) in found]
            mean = [statistics.mean(found[rule, lr]) for lr in tried]
            low = [m - min(found[rule, lr]) for m, lr in zip(mean, tried, strict=True)]
            high = [max(found[rule, lr]) - m for m, lr in zip(mean, tried, strict=True)]
            axes.errorbar(
                [lr * shift for lr in tried],
                mean,
                yerr=[[max(x, 0) for x in low], [max(x, 0) for x in high]],
                color=color,
                marker='o',
                ms=4,
                capsize=3,
                ls='--' if rule == 'none' else '-',
                label=LABELS.get(rule, rule),
            )
            dead = [
                float(r['lr']) * shift
                for r in rows
                if r['rule'] == rule and r['status'] == 'diverged'
            ]
            axes.plot(dead, [-0.03 - 0.025 * i] * len(dead), ls='', marker='x', color=color, ms=6)
        axes.set(xscale='log', xlabel='learning rate', title=CONTEXTS[context])
        axes.set_xticks(lrs, [f'{lr:g}' for lr in lrs])
        axes.minorticks_off()
        axes.grid(alpha=0.25)
    panels[0].set_ylabel('mean R@20, mean and range of the seeds\n(crosses: diverged)')
    panels[0].legend(fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('sweeps', type=Path, nargs='+', help='folders of sweeps')
    args = parser.parse_args()
    for folder in args.sweeps:
        if folder.name.partition('_')[0] not in CONTEXTS:
            parser.error(f'{folder} begins with none of {list(CONTEXTS)}')
    tables = read(args.sweeps)
    empty = [name for name, table in tables.items() if not table]
    if empty:
        parser.error(f'no sweep of {empty[0]}')
    rows = [row for table in tables.values() for row in table]
    with (HERE / 'stability.csv').open('w', newline='') as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)
    for name, table in tables.items():
        print(f'\n{CONTEXTS[name]}\n')
        print_table(table)
    draw(tables, HERE / 'stability.png')


if __name__ == '__main__':
    main()
