"""The table of interactions says of every cell what a run does."""

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

#: The first test to ask waits for all processes, on a busy machine for long.
pytestmark = pytest.mark.timeout(900)

TABLE = read_table(DOC.read_text())


def test_no_cell_is_missing():
    assert list(TABLE) == list(CLIPPERS)
    for row in TABLE.values():
        assert list(row) == COLUMNS
        for cell in row.values():
            assert cell in (SAME, FOLDED, HANDED_OVER) or cell.startswith('raises: ')


def test_a_table_is_read_as_it_was_written():
    assert read_table(f'<!-- table: begin -->\n{write_table(TABLE)}\n<!-- table: end -->') == TABLE


@pytest.mark.parametrize('column', COLUMNS)
@pytest.mark.parametrize('name', CLIPPERS)
def test_cell(name, column, engine_results):
    assert check(name, column, engine_results) == TABLE[name][column]
