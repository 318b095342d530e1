"""The model zoo page matches the result tables, and the tables match the logs."""

from __future__ import annotations

import csv
import importlib.util
import json
import shlex
from pathlib import Path

import pytest

from gclip_mm.clipping.config.parse import parse_clip_grad
from gclip_mm.engine.apply_clip import read_recipe

ROOT = Path(__file__).resolve().parents[1]
#: Table -> (column of the metric, key of the metric in the log).
TABLES = {
    'bccd_zoo/table.csv': ('mAP', 'bbox_mAP'),
    'bccd/table.csv': ('mAP', 'bbox_mAP'),
    'scene_graph/shapescenes.csv': ('mR@20', 'sg/mR@20'),
}
ROWS = [
    pytest.param(table, row, id=f'{table}-{i}')
    for table in TABLES
    for i, row in enumerate(csv.DictReader((ROOT / 'results' / table).open(newline='')))
]


def test_page_is_generated_from_the_tables():
    spec = importlib.util.spec_from_file_location('model_zoo', ROOT / 'results' / 'model_zoo.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text() == module.page(), 'run `python results/model_zoo.py`'


@pytest.mark.parametrize(('table', 'row'), ROWS)
def test_row_matches_its_log_and_its_command_exists(table, row):
    column, key = TABLES[table]
    log = ROOT / 'results' / Path(table).parent / row['log']
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    found = [v for line in lines for k, v in line.items() if k == key or k.endswith(f'/{key}')]
    if row[column]:
        assert round(found[-1], 4) == pytest.approx(float(row[column]), abs=1e-9)
    words = shlex.split(row['command'])
    config = next(word for word in words if word.startswith('configs/'))
    assert (ROOT / config).is_file()
    if '--clip' in words:
        parse_clip_grad(read_recipe(words[words.index('--clip') + 1]))
