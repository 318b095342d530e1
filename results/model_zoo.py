"""Write docs/model_zoo.md: every training, with config, result, log and command.

The page is generated from the tables in ``results/``, so that it cannot differ from them.

Example:
    python results/model_zoo.py
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / 'docs' / 'model_zoo.md'

HEAD = """# Model zoo

Every model on this page was trained from scratch on a CPU, with the command in its row, on one
thread (`OMP_NUM_THREADS=1`). R-CNN and Fast R-CNN used proposals that were made before training
([configs/bccd](../configs/bccd)). `python results/model_zoo.py` writes the page from the tables in
[results](../results), which describe each measurement. Checkpoints are not kept: the longest of
these trainings takes minutes.

Recipes for stock detectors on COCO ([configs](../configs)) and scene graphs on Visual Genome and
PSG ([configs/scene_graph](../configs/scene_graph)) inherit published schedules. They have **not**
been trained for this page: they need GPUs for days. A config without a row has no result yet.
"""

DETECTORS = {
    'rcnn': 'R-CNN',
    'fast-rcnn': 'Fast R-CNN',
    'faster-rcnn_p3': 'Faster R-CNN',
    'ssd': 'SSD',
    'yolox': 'YOLOX',
    'dino': 'DINO',
}
RULES = {'none': 'none', 'value': 'value', 'norm': 'norm', 'agc': 'AGC'}


def read(table: str) -> list[dict[str, str]]:
    with (ROOT / 'results' / table).open(newline='') as file:
        return list(csv.DictReader(file))


def link(text: str, path: str) -> str:
    """A link from the page to a file of the repository."""
    return f'[{text}](../{path})'


def three(value: str | float) -> str:
    """With three digits; an empty cell stays empty."""
    return f'{float(value):.3f}' if value != '' else ''


def table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ['---'] * len(head), *rows]
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


def code(command: str) -> str:
    return f'`{command}`'


def bccd_zoo() -> str:
    rows = read('bccd_zoo/table.csv')
    order = {(d, r): i for i, (d, r) in enumerate((d, r) for d in DETECTORS for r in RULES)}
    rows.sort(key=lambda row: order[row['detector'], row['rule']])
    return table(
        ['detector', 'clipping', 'best lr', 'mAP', 'largest lr alive', 'config', 'log', 'command'],
        (
            [
                DETECTORS[row['detector']],
                RULES[row['rule']],
                row['best_lr'],
                three(row['mAP']),
                row['largest_lr_alive'],
                link('config', row['config']),
                link('log', f'results/bccd_zoo/{row["log"]}'),
                code(row['command']),
            ]
            for row in rows
        ),
    )


def bccd_fatal() -> str:
    return table(
        ['clipping', 'mAP', 'mAP50', 'config', 'log', 'command'],
        (
            [
                row['rule'],
                three(row['mAP']) or f'NaN from iteration {row["first_nan_iteration"]}',
                three(row['mAP50']),
                link('config', row['command'].split()[-1]),
                link('log', f'results/bccd/{row["log"]}'),
                code(row['command']),
            ]
            for row in read('bccd/table.csv')
        ),
    )


def scene_graphs() -> str:
    return table(
        [
            *('context', 'protocol', 'R@20', 'mean R@20', 'scene top-1', 'mAP'),
            *('config', 'log', 'command'),
        ],
        (
            [
                row['context'],
                row['protocol'],
                three(row['R@20']),
                three(row['mR@20']),
                three(row['scene_top1']),
                three(row['bbox_mAP']),
                link('config', row['config']),
                link('log', f'results/scene_graph/{row["log"]}'),
                code(row['command']),
            ]
            for row in read('scene_graph/shapescenes.csv')
        ),
    )


def quickstart() -> list[str]:
    log = 'results/quickstart/auto_seed0.json'
    result = json.loads((ROOT / log).read_text().splitlines()[-1])
    config = 'configs/quickstart/faster-rcnn_tiny_shapescenes.py'
    return [
        'Auto',
        three(result['coco/bbox_mAP']),
        three(result['coco/bbox_mAP_50']),
        link('config', config),
        link('log', log),
        code(f'python tools/train.py {config}'),
    ]


def page() -> str:
    sections = {
        'Six detectors on BCCD': (
            'Real photos, 256x192, seed 0, the same schedule for every rule; the best of several '
            'learning rates for each. All rates, and two more seeds, are in '
            '[results/bccd_zoo](../results/bccd_zoo).',
            bccd_zoo(),
        ),
        'Faster R-CNN on BCCD at a learning rate that is fatal without clipping': (
            'See [results/bccd](../results/bccd).',
            bccd_fatal(),
        ),
        'Scene graphs on ShapeScenes': (
            'See [results/scene_graph](../results/scene_graph) and '
            '[configs/scene_graph](../configs/scene_graph).',
            scene_graphs(),
        ),
        'Quickstart': (
            'Faster R-CNN on ShapeScenes, see [results/quickstart](../results/quickstart).',
            table(
                ['clipping', 'mAP', 'mAP50', 'config', 'log', 'command'],
                [quickstart()],
            ),
        ),
        'Grids of learning rate, rule and seed': (
            'Each row of [results/stability/bccd.csv](../results/stability/bccd.csv) and '
            '[results/scene_graph/stability.csv](../results/scene_graph/stability.csv) has the '
            'command that trains it alone.',
            '',
        ),
    }
    parts = [HEAD]
    for title, texts in sections.items():
        parts += [f'## {title}\n', *(f'{text}\n' for text in texts if text)]
    return '\n'.join(parts)


def main() -> None:
    PAGE.write_text(page())
    print(f'Wrote {PAGE.relative_to(ROOT)}')


if __name__ == '__main__':
    main()
