"""Print the size of gclip_mm and what its imports and its engine look like, in Markdown.

python tools/dev/tree_size.py [CHECKOUT]
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tools.dev.layers import (  # noqa: E402
    PACKAGE,
    find_circles,
    find_imports,
    find_modules,
    find_upward,
    layer_of,
)

ENGINE = 'GradClipEngine'


class Method(NamedTuple):
    """A method and its lines, signature, docstring and comments included."""

    lines: int
    name: str
    place: str


def count_folders(root: Path) -> dict[str, tuple[int, int]]:
    """Files and lines of each folder by itself, without its subfolders."""
    files, lines = Counter(), Counter()
    for path in sorted((root / PACKAGE).rglob('*.py')):
        folder = path.parent.relative_to(root).as_posix()
        files[folder] += 1
        lines[folder] += len(path.read_text(encoding='utf-8').splitlines())
    return {folder: (files[folder], lines[folder]) for folder in sorted(files)}


def find_methods(root: Path, class_name: str) -> list[Method]:
    """The methods of a class, longest first."""
    methods = []
    for path in find_modules(root).values():
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if isinstance(node, ast.ClassDef) and node.name == class_name:
                methods += [
                    Method(
                        item.end_lineno - item.lineno + 1,
                        item.name,
                        f'{path.relative_to(root)}:{item.lineno}',
                    )
                    for item in node.body
                    if isinstance(item, ast.FunctionDef)
                ]
    return sorted(methods, reverse=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('checkout', nargs='?', type=Path, default=ROOT, help='default: this one')
    root = parser.parse_args().checkout.resolve()

    folders = count_folders(root)
    print('| folder | files | lines |\n|---|---:|---:|')
    for folder, (files, lines) in folders.items():
        print(f'| {folder} | {files} | {lines} |')
    for top in (f'{PACKAGE}/clipping', PACKAGE):
        own = [size for name, size in folders.items() if f'{name}/'.startswith(f'{top}/')]
        files, lines = (sum(column) for column in zip(*own, strict=True))
        print(f'| **{top} with its folders** | {files} | {lines} |')

    longest = find_methods(root, ENGINE)[0]
    print(f'\nLongest method of {ENGINE}: {longest.name}, {longest.lines} lines, {longest.place}')

    imports = find_imports(root)
    circles, upward = find_circles(imports), find_upward(imports)
    print(f'\nCircles of imports: {len(circles)}')
    for circle in circles:
        print(f'- {", ".join(circle)}')
    unplaced = [module for module in find_modules(root) if layer_of(module) is None]
    note = f' ({len(unplaced)} modules have no layer and were left out)' if unplaced else ''
    print(f'\nImports from a lower layer to a higher one: {len(upward)}{note}')
    for item in upward:
        print(f'- {item}')


if __name__ == '__main__':
    main()
