"""Collects the runs of README.md into runs.csv: ``python collect.py FOLDER_OF_RUNS``."""

from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path
from typing import Any


def read(folder: Path) -> dict[str, Any]:
    """One run, whose folder is named ``RULE_lrRATE_sSEED``."""
    rule, rate, seed = re.fullmatch(r'(.+)_lr(.+)_s(\d+)', folder.name).groups()  # type: ignore[union-attr]
    text = (folder / 'metrics.json').read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    log = (folder / 'log.txt').read_text()
    losses = [line['total_loss'] for line in lines if 'total_loss' in line]
    scores = next((line for line in lines if 'bbox/AP' in line), {})
    stopped = 'Exception during training:' in log
    return {
        'rule': rule,
        'lr': rate,
        'seed': seed,
        'outcome': 'FloatingPointError' if stopped else 'finished',
        'iterations': 1 + max(line['iteration'] for line in lines if 'total_loss' in line),
        'total_loss': f'{losses[-1]:.3f}',
        'AP': f'{scores["bbox/AP"] / 100:.3f}' if scores else '',
        'AP50': f'{scores["bbox/AP50"] / 100:.3f}' if scores else '',
    }


def main() -> None:
    found = [read(path) for path in sorted(Path(sys.argv[1]).iterdir()) if path.is_dir()]
    found.sort(key=lambda run: (float(run['lr']), run['rule'], run['seed']))
    with (Path(__file__).parent / 'runs.csv').open('w', newline='') as file:
        writer = csv.DictWriter(file, found[0], lineterminator='\n')
        writer.writeheader()
        writer.writerows(found)


if __name__ == '__main__':
    main()
