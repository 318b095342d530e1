"""No twelve lines of configs or package are written twice."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LENGTH = 12


def code_lines(text: str) -> list[tuple[int, str]]:
    """Number and content of the lines of code: no blank lines, comments, docstrings and imports."""
    lines = text.splitlines()
    left_out: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if is_text or isinstance(node, ast.Import | ast.ImportFrom):
            left_out.update(range(node.lineno, node.end_lineno + 1))
    found = ((number, line.split('  # ')[0].strip()) for number, line in enumerate(lines, 1))
    return [(n, line) for n, line in found if n not in left_out and line and line[0] != '#']


def repeated(files: dict[str, str]) -> list[tuple[str, str]]:
    """Pairs of places, ``file:line``, from which on at least ``LENGTH`` lines are equal."""
    places = defaultdict(list)
    for name, text in files.items():
        lines = code_lines(text)
        for i in range(len(lines) - LENGTH + 1):
            window = tuple(line for _, line in lines[i : i + LENGTH])
            places[window].append((name, i, lines[i][0]))
    pairs = {
        (a[:2], b[:2]): (f'{a[0]}:{a[2]}', f'{b[0]}:{b[2]}')
        for found in places.values()
        for k, a in enumerate(found)
        for b in found[k + 1 :]
    }
    # Only the first window of a longer repetition.
    return [
        where
        for (a, b), where in pairs.items()
        if ((a[0], a[1] - 1), (b[0], b[1] - 1)) not in pairs
    ]


@pytest.mark.parametrize('folder', ['configs', 'gclip_mm'])
def test_no_lines_are_repeated(folder):
    paths = sorted((ROOT / folder).rglob('*.py'))
    assert paths
    files = {path.relative_to(ROOT).as_posix(): path.read_text() for path in paths}
    assert repeated(files) == []


def test_a_repetition_is_found_between_files_and_within_one():
    block = '\n'.join(f'x = {i}' for i in range(LENGTH))
    other = block.replace('x = 3', '\n# A comment.\nx = 3  # three').replace('x', '  x')
    found = repeated({'a.py': f'import os\n{block}\n', 'b.py': f'if y:\n{other}\n'})
    assert found == [('a.py:2', 'b.py:2')]
    assert repeated({'a.py': f'{block}\ny = 1\n{block}\n'}) == [('a.py:1', f'a.py:{LENGTH + 2}')]
    assert repeated({'a.py': block, 'b.py': block.replace('x = 5', 'x = 6')}) == []
