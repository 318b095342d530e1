"""Train the study of Auto, collect it in ``cells.csv``, and write the tables of the README.

Each part is a call of ``gclip sweep``, which continues where an earlier call stopped. What
``cells.csv`` has of a training that is collected again is replaced.

Example:
    OMP_NUM_THREADS=1 python results/auto/study.py work_dirs/auto --only ssd yolox
    python results/auto/study.py --tables
"""

from __future__ import annotations

import argparse
import csv
import statistics
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
ZOO = HERE.parent / 'bccd_zoo'
BCCD, OWN, SCENES = 'configs/bccd', 'results/auto/configs', 'configs/scene_graph/shapescenes'
FIELDS = ['detector', 'rule', 'lr', 'seed', 'status', 'metric', 'iterations', 'nonfinite_from']
SEEDS = ('0', '1', '2')
HAND = ('value', 'norm', 'agc', 'zclip')
#: Other values of the keys of Auto: each half or less, and twice, its default.
KEYS = (('reach', '0.02'), ('reach', '0.1'), ('total', '0.15'), ('total', '0.6'))
ABLATION = tuple(f'Auto, {key} {value}:type=Auto,{key}={value}' for key, value in KEYS)
#: Three thresholds for norm clipping, where none is known.
NORMS = tuple(f'norm {m}:type=NormClip,max_norm={m}' for m in ('0.3', '1.0', '3.0'))


class Part(NamedTuple):
    """One call of ``gclip sweep``.

    Attributes:
        name: in ``cells.csv``; parts of the same name are one table.
        config: the config.
        rates: learning rates.
        rules: as for ``--clip``.
        seeds: of each.
        options: further arguments.
    """

    name: str
    config: str
    rates: tuple[str, ...]
    rules: tuple[str, ...]
    seeds: tuple[str, ...] = SEEDS
    options: tuple[str, ...] = ()


SGD = {
    'rcnn': ('0.01', '0.04', '0.16', '0.64'),
    'fast-rcnn': ('0.04', '0.16', '0.64', '2.56'),
    'faster-rcnn_p3': ('0.04', '0.16', '0.64', '2.56'),
    'ssd': ('0.02', '0.08', '0.32', '1.28'),
    'yolox': ('0.04', '0.16', '0.64', '2.56'),
}
ADAMW = {
    'faster-rcnn_p3_adamw': f'{OWN}/faster-rcnn_p3_tiny_bccd_adamw.py',
    'retinanet_adamw': f'{OWN}/retinanet_tiny_bccd_adamw.py',
    'dino': f'{BCCD}/dino_tiny_bccd.py',
}
ADAMW_RATES = ('0.001', '0.004', '0.016', '0.064')
#: 100 iterations with SGD, as in results/scene_graph.
SHORT = (
    '--metric sg/mR@20 --cfg-options optim_wrapper.optimizer.type=SGD '
    'optim_wrapper.optimizer.momentum=0.9 optim_wrapper.optimizer.weight_decay=1e-4 '
    'train_cfg.max_iters=100 train_cfg.val_interval=100 param_scheduler.0.end=20 '
    'param_scheduler.1.begin=20 param_scheduler.1.end=100'
)
CARDS = 'faster-rcnn_mobilenetv2_cards'
COCO = 'faster-rcnn_mobilenetv2_coco'
CARD_RATES = ('0.01', '0.04', '0.16')

STUDY = [
    *(Part(k, f'{BCCD}/{k}_tiny_bccd.py', rates, ('auto',)) for k, rates in SGD.items()),
    # At the other rates: results/bccd_zoo.
    *(Part(k, f'{BCCD}/{k}_tiny_bccd.py', rates[3:], HAND, ('0',)) for k, rates in SGD.items()),
    *(Part(k, f'{BCCD}/{k}_tiny_bccd.py', rates, ('zclip',), ('0',)) for k, rates in SGD.items()),
    Part(
        'faster-rcnn_p3', f'{BCCD}/faster-rcnn_p3_tiny_bccd.py', ('0.04', '2.56'), ABLATION, ('0',)
    ),
    *(Part(k, path, ADAMW_RATES, ('auto', 'none')) for k, path in ADAMW.items()),
    *(
        Part(
            f'scene graph, {k}',
            f'{SCENES}/{k}_predcls_shapescenes.py',
            rates,
            ('auto',),
            SEEDS,
            opt,
        )
        for k in ('rnn', 'crnn', 'transformer')
        for rates, opt in [(('0.02', '0.08', '0.32', '1.28'), tuple(SHORT.split()))]
    ),
    Part(CARDS, f'{OWN}/{CARDS}.py', CARD_RATES, ('auto', 'none')),
    Part(CARDS, f'{OWN}/{CARDS}.py', CARD_RATES, NORMS),
    Part(COCO, f'{OWN}/{COCO}.py', CARD_RATES, ('auto', 'none', *NORMS)),
    Part(
        f'{CARDS}_adamw',
        f'{OWN}/{CARDS}_adamw.py',
        ('0.0005', '0.002', '0.008', '0.032'),
        ('auto', 'none'),
    ),
]
Row = dict[str, str]
Cells = dict[tuple[str, float], dict[int, Row]]
NAMES = {
    'rcnn': 'R-CNN',
    'fast-rcnn': 'Fast R-CNN',
    'faster-rcnn_p3': 'Faster R-CNN',
    'ssd': 'SSD',
    'yolox': 'YOLOX',
}


def train(part: Part, out: Path) -> None:
    """Run a part; what is already there is not trained again."""
    command = [sys.executable, '-m', 'gclip_mm.cli', 'sweep', part.config, '--lr', *part.rates]
    command += ['--clip', *part.rules, '--seeds', *part.seeds, '--out', str(out), *part.options]
    subprocess.run(command, check=True)


def read(path: Path) -> list[Row]:
    with path.open(newline='') as file:
        return list(csv.DictReader(file))


def collect(name: str, folder: Path, rows: list[Row]) -> None:
    """Put the trainings of a sweep among the rows of ``cells.csv``."""
    for row in read(folder / 'sweep.csv'):
        rule = 'Auto' if row['rule'] == 'auto' else row['rule']
        new = {**row, 'detector': name, 'rule': rule}
        key = _key(new)
        rows[:] = [old for old in rows if _key(old) != key]
        rows.append({field: new[field] for field in FIELDS})


def _key(row: Row) -> tuple[str, str, float, int]:
    return row['detector'], row['rule'], float(row['lr']), int(row['seed'])


def write(rows: list[Row]) -> None:
    with (HERE / 'cells.csv').open('w', newline='') as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator='\n')
        writer.writeheader()
        writer.writerows(sorted(rows, key=_key))


def known() -> list[Row]:
    """The rows of ``cells.csv``, and those of results/bccd_zoo."""
    rows = read(HERE / 'cells.csv')
    rows += [{**row, 'metric': row['metric']} for row in read(ZOO / 'cells.csv')]
    rows += [{**row, 'metric': row['mAP'], 'status': 'trained'} for row in read(ZOO / 'seeds.csv')]
    return rows


def cells_of(name: str, rows: list[Row]) -> Cells:
    """The trainings of a detector by rule and learning rate, then by seed."""
    cells: Cells = {}
    for row in rows:
        if row['detector'] == name:
            place = row['rule'], float(row['lr'])
            cells.setdefault(place, {})[int(row['seed'])] = row
    return cells


def summary(rows: list[Row]) -> str:
    """Means of three seeds: none, the best rule with a threshold, and Auto at 64 times the rate."""
    head = '| detector | no clipping | best of value, norm and AGC at 1, 4 or 16 times the rate |'
    lines = [f'{head} `Auto` at 64 times |', '|---|---|---|---|']
    for name, rates in SGD.items():
        found = cells_of(name, rows)
        means = {place: _mean(cell) for place, cell in found.items() if len(cell) == len(SEEDS)}
        hand = max(mean for (rule, _), mean in means.items() if rule in HAND)
        none, auto = means['none', float(rates[0])], means['Auto', float(rates[3])]
        lines.append(f'| {NAMES[name]} | {none:.3f} | {hand:.3f} | **{auto:.3f}** |')
    return '\n'.join(lines) + '\n'


def tables(rows: list[Row]) -> str:
    """A table for each detector: the mean over the seeds, and each of them."""
    lines: list[str] = []
    for name in dict.fromkeys(part.name for part in STUDY):
        found = cells_of(name, rows)
        rates = sorted({rate for _, rate in found})
        if not rates:
            continue
        lines += [f'### {name}', '', '| rule | ' + ' | '.join(f'lr {r:g}' for r in rates) + ' |']
        lines += ['|---' * (len(rates) + 1) + '|']
        rules = dict.fromkeys(rule for rule, _ in found)
        for rule in sorted(rules, key=lambda rule: (rule != 'none', rule.startswith('Auto'), rule)):
            texts = [_text(found.get((rule, rate), {})) for rate in rates]
            lines.append(f'| {rule} | ' + ' | '.join(texts) + ' |')
        lines.append('')
    return '\n'.join(lines)


def write_tables() -> None:
    """Put the tables into the README."""
    path = HERE / 'README.md'
    text, rows = path.read_text(), known()
    for name, made in (('table', summary(rows)), ('study', tables(rows))):
        begin, end = f'<!-- {name}: begin -->', f'<!-- {name}: end -->'
        before, rest = text.split(begin)
        text = f'{before}{begin}\n{made}{end}{rest.split(end)[1]}'
    path.write_text(text)


def _mean(found: dict[int, Row]) -> float:
    """A training without a metric counts as 0: it diverged, or its weights were not finite."""
    return statistics.mean(float(row['metric'] or 0) for row in found.values())


def _text(found: dict[int, Row]) -> str:
    """The mean, and the value of each seed."""
    if not found:
        return ''
    lost = sum(row['status'] == 'diverged' for row in found.values())
    if lost == len(found):
        return 'diverged' if lost == 1 else f'{lost} of {lost} diverged'
    text = f'{_mean(found):.3f}'
    each = ', '.join(f'{float(found[seed]["metric"] or 0):.3f}' for seed in sorted(found))
    return text if len(found) == 1 else f'{text} ({each})'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument(
        'work_dir', type=Path, nargs='?', help='a folder for each part is made here'
    )
    names = list(dict.fromkeys(part.name for part in STUDY))
    parser.add_argument('--only', nargs='+', choices=names, metavar='NAME', help=', '.join(names))
    parser.add_argument('--tables', action='store_true', help='write the tables, train nothing')
    args = parser.parse_args()
    if (args.work_dir is None) != args.tables:
        parser.error('give either the folder to train in, or --tables')
    for i, part in enumerate(STUDY):
        if args.work_dir is not None and (args.only is None or part.name in args.only):
            folder = args.work_dir / f'{i:02d}_{part.name.replace(" ", "_").replace(",", "")}'
            train(part, folder)
            rows = read(HERE / 'cells.csv')
            collect(part.name, folder, rows)
            write(rows)
    write_tables()


if __name__ == '__main__':
    main()
