"""The layers of gclip_mm, and the imports that they forbid; used by tests/test_layers.py."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

PACKAGE = 'gclip_mm'

#: The layers, lowest first. A module may import modules of its own layer and of those below it.
#: A name covers a module or a package with everything in it; ``x.__init__`` is the package's own
#: file alone. Every module of gclip_mm has to be covered.
LAYERS: tuple[tuple[str, ...], ...] = (
    ('version', 'compat'),
    ('clipping.checks', 'clipping.host'),
    ('clipping.kernels',),
    ('clipping.gradients',),
    ('clipping.results', 'clipping.state_fields'),
    ('clipping.base', 'clipping.small_state'),
    ('clipping.config',),
    ('clipping.rules',),
    ('clipping.step',),
    ('clipping.attach', 'clipping.__init__', 'clipping.__main__'),
    ('engine', 'detectron2'),
    ('analysis',),
    ('models', 'datasets', 'scene_graph'),
    ('cli',),
    ('__init__', '__main__'),
)
#: Modules that may import less than their layer allows: each imports only what these names cover.
SEES_ONLY: dict[str, tuple[str, ...]] = {
    'detectron2': ('detectron2', 'version', 'compat', 'clipping')
}


class Import(NamedTuple):
    """An import statement; names are dotted and relative to gclip_mm, ``''`` is gclip_mm itself.

    Attributes:
        importer: the module with the statement.
        imported: the module that it makes Python run: the one that it names, or a package around
            that one, whose ``__init__`` is run first.
        place: file and line.
    """

    importer: str
    imported: str
    place: str

    def __str__(self) -> str:
        return f'{self.place}: {_full(self.importer)} imports {_full(self.imported)}'


def _full(module: str) -> str:
    return f'{PACKAGE}.{module}' if module else PACKAGE


def _parents(module: str) -> list[str]:
    """The packages around a module, gclip_mm itself included."""
    parts = module.split('.') if module else []
    return ['.'.join(parts[:end]) for end in range(len(parts))]


def find_modules(root: Path) -> dict[str, Path]:
    """The modules of ``root/gclip_mm`` by name; a package stands for its ``__init__``."""
    modules = {}
    for path in sorted((root / PACKAGE).rglob('*.py')):
        parts = list(path.relative_to(root / PACKAGE).with_suffix('').parts)
        if parts[-1] == '__init__':
            parts.pop()
        modules['.'.join(parts)] = path
    return modules


def find_imports(root: Path) -> list[Import]:
    """Every import of a module of gclip_mm by another, wherever the statement stands.

    Imports for type checking and within functions are included, and so are calls of
    ``import_module`` with a literal name. An import of ``a.b.c`` is also one of the packages ``a``
    and ``a.b``, unless the importer itself is in them.
    """
    modules = find_modules(root)
    found = []
    for importer, path in modules.items():
        package = importer if path.name == '__init__.py' else importer.rpartition('.')[0]
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            for target in _targets(node, package, modules):
                run = [target, *(p for p in _parents(target) if p not in _parents(importer))]
                place = f'{path.relative_to(root)}:{getattr(node, "lineno", 0)}'
                found += [Import(importer, name, place) for name in run if name != importer]
    return sorted(set(found))


def _targets(node: ast.AST, package: str, modules: Iterable[str]) -> Iterator[str]:
    """The modules of gclip_mm that a statement or a call imports by name."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        base = _absolute(node.module or '', node.level, package)
        names = [f'{base}.{alias.name}' for alias in node.names]
    elif isinstance(node, ast.Call) and 'import_module' in ast.unparse(node.func):
        first = node.args[0] if node.args else None
        if not (isinstance(first, ast.Constant) and isinstance(first.value, str)):
            return
        level = len(first.value) - len(first.value.lstrip('.'))
        names = [_absolute(first.value[level:], level, package)]
    else:
        return
    for name in names:
        head, _, module = name.partition('.')
        if head != PACKAGE:
            continue
        # What is not a module is an attribute of the module before the last dot.
        while module and module not in modules:
            module = module.rpartition('.')[0]
        yield module


def _absolute(name: str, level: int, package: str) -> str:
    """The full name of a relative import; ``level`` counts its dots."""
    if level == 0:
        return name
    parts = [PACKAGE, *(package.split('.') if package else [])]
    base = parts[: len(parts) - (level - 1)]
    return '.'.join([*base, name] if name else base)


def covers(name: str, module: str) -> bool:
    """Whether a name of :data:`LAYERS` covers a module."""
    if name == '__init__' or name.endswith('.__init__'):
        return module == name.removesuffix('__init__').rstrip('.')
    return module == name or module.startswith(f'{name}.')


def layer_of(module: str) -> int | None:
    """The place of a module's layer in :data:`LAYERS`; None where no layer covers it."""
    return next(
        (i for i, names in enumerate(LAYERS) if any(covers(name, module) for name in names)), None
    )


def find_upward(imports: Iterable[Import]) -> list[Import]:
    """The imports that go from a lower layer to a higher one, or past :data:`SEES_ONLY`.

    Where a statement imports a module and the packages around it, the innermost is given.
    """
    upward = [item for item in imports if _is_upward(item)]
    return [
        item
        for item in upward
        if not any(
            other.place == item.place and other.imported.startswith(f'{item.imported}.')
            for other in upward
        )
    ]


def _is_upward(item: Import) -> bool:
    for name, seen in SEES_ONLY.items():
        if covers(name, item.importer) and not any(covers(each, item.imported) for each in seen):
            return True
    low, high = layer_of(item.importer), layer_of(item.imported)
    return low is not None and high is not None and low < high


def find_circles(imports: Iterable[Import]) -> list[list[str]]:
    """The groups of modules that import each other, directly or through others of the group."""
    graph: dict[str, set[str]] = {}
    for item in imports:
        graph.setdefault(item.importer, set()).add(item.imported)
    reachable = {module: _reach(module, graph) for module in graph}
    circles = {
        frozenset(other for other in seen if module in reachable.get(other, ()))
        for module, seen in reachable.items()
        if module in seen
    }
    return sorted(sorted(circle) for circle in circles)


def _reach(module: str, graph: dict[str, set[str]]) -> set[str]:
    """The modules that a module imports, directly or through others."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        new = graph.get(waiting.pop(), set()) - seen
        seen |= new
        waiting += new
    return seen
