"""The list of published tables: their sources, and the names of their metrics."""

import re

import pytest

from gclip_mm.scene_graph.evaluation import CONVENTIONS
from gclip_mm.scene_graph.evaluation.published import PUBLISHED

KNOWN = r'(ng)?(phr)?R|mR|ngmR|zR|F1|wmAP_(rel|phr)|score_wtd'


@pytest.mark.parametrize('table', PUBLISHED, ids=lambda t: f'{t.paper} {t.what}')
def test_table_names_its_source_and_known_metrics(table):
    assert table.source.startswith('https://')
    assert table.convention in CONVENTIONS
    assert set(table.protocols) <= {'predcls', 'sgcls', 'sgdet'}
    number = re.fullmatch(r'.+ (\d{4}\.\d{5})', table.paper).group(1)
    assert 'arxiv' not in table.source or table.source.endswith(f'/{number}')
    names = re.findall(r'(\w+)@|(\w+_\w+)', table.metrics)
    assert names
    for name in (a or b for a, b in names):
        assert re.fullmatch(KNOWN, name), name


def test_no_table_is_listed_twice():
    keys = [(t.paper, t.data, t.what) for t in PUBLISHED]
    assert len(set(keys)) == len(keys)
