"""Tests of gclip_mm.detectron2: on a stand-in, or on the real package.

``GCLIP_DETECTRON2_SOURCE`` names a checkout of Detectron2 whose package is installed: the tests
then run on that package, and those of ``test_real.py`` run as well (``make test-detectron2``).
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.detectron2.source import SOURCE

STAND_IN = Path(__file__).parent / 'stand_in'

if SOURCE is None:
    sys.path.insert(0, str(STAND_IN))


@pytest.fixture(scope='session', autouse=True)
def package_is_the_intended_one():
    import detectron2

    assert (Path(detectron2.__file__).parents[1] == STAND_IN) == (SOURCE is None)
