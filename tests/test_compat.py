"""Checks of installed packages and their versions."""

from __future__ import annotations

import ast
import functools
import importlib.util
import pickle
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from gclip_mm import compat
from tests import older_torch


def test_is_installed_finds_packages_without_importing_them(monkeypatch):
    assert compat.is_installed('torch')
    assert not compat.is_installed('no_such_package_of_anyone')
    monkeypatch.setitem(sys.modules, 'mmdet', None)
    assert not compat.is_installed('mmdet'), 'a blocked import counts as not installed'


@pytest.mark.parametrize(
    ('version', 'expected'),
    [('2.0.1', (2, 0)), ('2.5.1+cpu', (2, 5)), ('2.10.0', (2, 10)), ('2.14.0a0+git1', (2, 14))],
)
def test_releases_are_numbers_that_can_be_compared(version, expected):
    assert compat._release(version) == expected


@pytest.fixture(params=[(2, 0), (2, 1), (2, 4)], ids='as on {0[0]}.{0[1]}'.format)
def older(request, monkeypatch):
    """compat.py as an older torch would make it, with the installed one."""
    if request.param > compat.TORCH:
        pytest.skip('the installed torch is older')
    monkeypatch.setattr(torch, '__version__', '{}.{}.0'.format(*request.param))
    spec = importlib.util.spec_from_file_location('gclip_mm.older_compat', compat.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert request.param == module.TORCH
    return module


def test_replacements_for_an_older_torch_give_the_same_numbers(older):
    tensors = [torch.randn(3, 4), torch.randn(5).mul_(1e3), torch.tensor(2.0)]
    for p in (1.0, 2.0, 3.0):
        norms = older.foreach_norm(tensors, p, dtype=torch.float64)
        for norm, tensor in zip(norms, tensors, strict=True):
            assert norm.dtype == torch.float64
            true = np.linalg.norm(tensor.double().numpy().ravel(), p)
            assert norm.item() == pytest.approx(float(true), rel=1e-12)
    targets = [torch.zeros_like(tensor) for tensor in tensors]
    older.foreach_copy_(targets, tensors)
    assert all((a == b).all() for a, b in zip(targets, tensors, strict=True))
    older.foreach_scale_(targets, torch.tensor(0.5))
    assert all((a == 0.5 * b).all() for a, b in zip(targets, tensors, strict=True))


@pytest.mark.parametrize('shape', [(), (3,), (2, 0), (4, 4)])
def test_a_write_of_a_kernel_is_seen_by_autograd(older, shape):
    tensor = torch.randn(4, 4).t() if shape == (4, 4) else torch.randn(shape)
    before, version = tensor.clone(), tensor._version
    older.mark_written([tensor])
    assert tensor._version > version and (tensor == before).all()


def test_extremes_of_float16_are_exact(older):
    half = torch.tensor([1.0, -65504.0, 6e-8], dtype=torch.float16)
    low, high = older.aminmax(half)
    assert (low.item(), high.item()) == (-65504.0, 1.0) and low.dtype == torch.float16


def test_untraced_function_takes_attributes_and_keeps_its_result():
    class Owner:
        def method(self, value):
            return value + 1

    function = compat.untraced(Owner().method, True, 'a reason')
    function.mark = 'set'
    assert function(1) == 2 and function.mark == 'set'


def test_untraced_wrapper_of_an_untraced_function_is_called():
    """torch finds what it has disabled by an attribute, which ``functools.wraps`` copies."""
    inner = compat.untraced(lambda: 'inner', True, 'a reason')

    @functools.wraps(inner)
    def outer():
        return f'outer of {inner()}'

    for recursive in (True, False):
        assert compat.untraced(outer, recursive, 'a reason')() == 'outer of inner'


@pytest.mark.parametrize('name', ['SGD', 'Adam', 'AdamW', 'Adagrad'])
def test_lacks_fused_agrees_with_the_optimizer(name):
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.ones(2)
    lacks = False
    try:
        getattr(torch.optim, name)([parameter], lr=0.1, fused=True).step()
    except (TypeError, RuntimeError):
        lacks = True
    assert compat.lacks_fused(name, 'cpu') is lacks


def test_optimizer_that_is_never_fused_lacks_nothing():
    assert not compat.lacks_fused('RMSprop', 'cpu')


def test_numpy_multiarray_is_the_module_that_pickles_name():
    name = compat.numpy_multiarray().__name__
    assert name.encode() in pickle.dumps(np.zeros(2), protocol=2)


@pytest.mark.parametrize(('where', 'is_skipped'), [(__file__, True), (compat.__file__, False)])
def test_feature_that_torch_lacks_is_no_excuse_for_our_own_lines(where, is_skipped, monkeypatch):
    """tests/older_torch.py skips a test that needs the feature, not a use of it by the package."""
    monkeypatch.setattr(older_torch, 'TORCH', (2, 1))
    line = compile('raise AttributeError(text)', where, 'exec')
    with pytest.raises(AttributeError) as error:
        exec(line, dict(text="module 'torch.amp' has no attribute 'GradScaler'"))
    assert (older_torch.lacking(error.value) is not None) is is_skipped


#: Used where compat.LOADS_WEIGHTS_ONLY says that torch has it.
ASKED_FOR = {'torch.serialization.add_safe_globals'}


def names_of_torch(tree: ast.Module) -> Iterator[str]:
    """Every dotted name of torch in a module, those for the type checker left out."""
    skipped = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and getattr(node.test, 'id', '') == 'TYPE_CHECKING':
            skipped |= {id(inner) for inner in ast.walk(node)}
        elif id(node) in skipped:
            continue
        elif isinstance(node, ast.Attribute) and re.fullmatch(r'torch[.\w]+', ast.unparse(node)):
            yield ast.unparse(node)
        elif isinstance(node, ast.ImportFrom) and f'{node.module}.'.startswith('torch.'):
            yield from (f'{node.module}.{name.name}' for name in node.names)


def exists(name: str) -> bool:
    """Whether a dotted name can be reached by attributes, or is a module."""
    value: object = torch
    path = 'torch'
    for part in name.split('.')[1:]:
        path += f'.{part}'
        if not hasattr(value, part):
            try:
                importlib.import_module(path)
            except ImportError:
                return False
        value = getattr(value, part, None)
        if value is None or not isinstance(value, type(sys)):
            return True
    return True


def test_only_compat_names_what_this_torch_lacks():
    """On an older torch this finds uses that no test reaches; on a newer one, what was removed."""
    package = Path(compat.__file__).parent
    lacking = set()
    for path in package.rglob('*.py'):
        if path != Path(compat.__file__):
            names = set(names_of_torch(ast.parse(path.read_text()))) - ASKED_FOR
            lacking |= {
                f'{path.relative_to(package)}: {name}' for name in names if not exists(name)
            }
    assert lacking == set()
    assert exists('torch.nn.functional.relu')
    assert not exists('torch.nn.functional.no_such_function')
