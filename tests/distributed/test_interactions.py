"""Each cell of docs/interactions.md states the outcome of a run."""

from __future__ import annotations

import pytest

from gclip_mm import CLIPPERS
from tests.distributed.interactions import (
    COLUMNS,
    DOC,
    FOLDED,
    HANDED_OVER,
    SAME,
    check,
    read_table,
    write_table,
)

#: The first test that needs the results runs all processes, which is slow on a busy machine.
pytestmark = pytest.mark.timeout(900)

TABLE = read_table(DOC.read_text())


def test_table_has_every_rule_and_column():
    assert list(TABLE) == list(CLIPPERS)
    for row in TABLE.values():
        assert list(row) == COLUMNS
        for cell in row.values():
            assert cell in (SAME, FOLDED, HANDED_OVER) or cell.startswith('raises: ')


def test_read_table_inverts_write_table():
    assert read_table(f'<!-- table: begin -->\n{write_table(TABLE)}\n<!-- table: end -->') == TABLE


@pytest.mark.parametrize('column', COLUMNS)
@pytest.mark.parametrize('name', CLIPPERS)
def test_run_gives_the_documented_outcome(name, column, engine_results):
    assert check(name, column, engine_results) == TABLE[name][column]
