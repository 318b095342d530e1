"""Imports within gclip_mm go down the layers of tools/dev/layers.py and are not circular."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.dev.layers import (
    LAYERS,
    covers,
    find_circles,
    find_imports,
    find_modules,
    find_upward,
    layer_of,
)

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope='module')
def imports():
    return find_imports(ROOT)


def test_no_module_imports_from_a_higher_layer(imports):
    upward = find_upward(imports)
    lines = '\n'.join(map(str, upward))
    assert not upward, f'{len(upward)} imports go up the layers of tools/dev/layers.py:\n{lines}'


def test_no_modules_import_each_other_circularly(imports):
    circles = find_circles(imports)
    lines = [
        f'{" <-> ".join(f"gclip_mm.{name}" for name in circle)}\n'
        + '\n'.join(f'  {i}' for i in imports if {i.importer, i.imported} <= set(circle))
        for circle in circles
    ]
    assert not circles, f'{len(circles)} circles of imports:\n' + '\n'.join(lines)


def test_every_module_has_a_layer():
    modules = find_modules(ROOT)
    unplaced = [f'gclip_mm.{module}' for module in modules if layer_of(module) is None]
    assert not unplaced, f'add to LAYERS in tools/dev/layers.py: {", ".join(unplaced)}'


def write_package(root: Path, files: dict[str, str]) -> Path:
    """Write a package gclip_mm with these files and an empty ``__init__`` where none is given."""
    for name, text in files.items():
        path = root / 'gclip_mm' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for folder in [root / 'gclip_mm', *(p for p in (root / 'gclip_mm').rglob('*') if p.is_dir())]:
        (folder / '__init__.py').touch()
    return root


@pytest.mark.parametrize(
    'statement',
    [
        'from ..engine.hooks import Hook',
        'from .. import engine',
        'import gclip_mm.engine',
        'from gclip_mm.engine.hooks.clip import ClipHook as Hook',
        'if TYPE_CHECKING:\n    from ..engine import hooks',
        'def f():\n    from ..engine.hooks import Hook',
        "def f():\n    return importlib.import_module('gclip_mm.engine')",
        "def f():\n    return import_module('..engine', __package__)",
    ],
)
def test_every_form_of_an_upward_import_is_found(statement, tmp_path):
    files = {'engine/hooks/clip.py': '', 'clipping/checks.py': f'import math\n{statement}\n'}
    upward = find_upward(find_imports(write_package(tmp_path, files)))
    (item,) = upward
    assert item.importer == 'clipping.checks' and item.imported.startswith('engine')


def test_downward_imports_and_imports_of_compat_are_allowed(tmp_path):
    files = {
        'compat.py': '',
        'clipping/checks.py': 'from ..compat import x',
        'clipping/rules/zclip.py': 'from ..checks import y\nfrom ..base import Clipper',
        'clipping/base.py': 'import torch\nfrom . import checks',
        'engine/hooks.py': 'from ..clipping import attach',
        'detectron2.py': 'from .clipping.base import Clipper\nfrom .compat import x',
    }
    imports = find_imports(write_package(tmp_path, files))
    assert len(imports) == 8
    assert not find_upward(imports) and not find_circles(imports)


def test_detectron2_may_not_import_the_mmengine_side(tmp_path):
    files = {'engine/hooks.py': '', 'detectron2.py': 'from .engine.hooks import x'}
    upward = find_upward(find_imports(write_package(tmp_path, files)))
    assert [item.imported for item in upward] == ['engine.hooks']


def test_circular_import_through_init_and_type_checking_is_found(tmp_path):
    """Importing a module of a package also runs the package's ``__init__`` and its imports."""
    files = {
        'models/__init__.py': 'from .b import B',
        'models/a.py': '',
        'models/b.py': 'if TYPE_CHECKING:\n    from ..datasets.c import C',
        'datasets/c.py': 'from ..models.a import A',
    }
    imports = find_imports(write_package(tmp_path, files))
    assert find_circles(imports) == [['datasets.c', 'models', 'models.b']]


def test_layer_covers_a_whole_package_or_its_init_alone():
    assert covers('clipping.rules', 'clipping.rules') and covers(
        'clipping.rules', 'clipping.rules.z'
    )
    assert not covers('clipping.rules', 'clipping.rules_of_thumb')
    assert covers('clipping.__init__', 'clipping') and covers('__init__', '')
    assert not covers('clipping.__init__', 'clipping.step')
    names = [name for layer in LAYERS for name in layer]
    assert len(names) == len(set(names))
