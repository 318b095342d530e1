"""Checks of installed packages and their versions."""

from __future__ import annotations

import pickle
import sys
from unittest import mock

import numpy as np
import pytest
import torch

from gclip_mm import compat


def test_is_installed_finds_packages_without_importing_them(monkeypatch):
    assert compat.is_installed('torch')
    assert not compat.is_installed('no_such_package_of_anyone')
    monkeypatch.setitem(sys.modules, 'mmdet', None)
    assert not compat.is_installed('mmdet'), 'a blocked import counts as not installed'


@pytest.mark.parametrize(
    ('version', 'expected'),
    [('2.4.0', False), ('2.5.1+cpu', False), ('2.6.0', True), ('2.10.0', True), ('3.0.0', True)],
)
def test_weights_only_is_the_default_since_torch_2_6(version, expected):
    with mock.patch.object(torch, '__version__', version):
        assert compat.loads_weights_only() is expected


def test_numpy_multiarray_is_the_module_that_pickles_name():
    name = compat.numpy_multiarray().__name__
    assert name.encode() in pickle.dumps(np.zeros(2), protocol=2)
