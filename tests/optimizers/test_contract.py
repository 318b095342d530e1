"""For every optimizer that is installed: a skipped step leaves no trace, and clipping clips.

``make test-optimizers`` installs the packages; without them only torch's own are tested.
"""

from __future__ import annotations

import importlib.util
import warnings

import pytest

from .contract import DOORS, PATTERNS, can_run, check_clip, check_skip
from .registry import PACKAGES, Entry, entries


def _parameters() -> list:
    found = []
    for package in PACKAGES:
        if importlib.util.find_spec(package) is None:
            skip = pytest.mark.skip(reason=f'{package} is not installed')
            found.append(pytest.param(None, marks=skip, id=package))
            continue
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            found += [pytest.param(entry, id=entry.id) for entry in entries(package)]
    return found


@pytest.fixture(params=_parameters())
def entry(request) -> Entry:
    return request.param


@pytest.fixture(params=DOORS)
def door(request, entry) -> str:
    if request.param in ('wrapper', 'hook'):
        pytest.importorskip('mmengine')
    if reason := can_run(entry, request.param):
        pytest.skip(reason)
    return request.param


@pytest.mark.filterwarnings('ignore')
def test_skipped_step_is_bit_identical_to_no_step(entry: Entry, door: str):
    for pattern in PATTERNS:
        found = check_skip(entry, door, pattern)
        if found.startswith('refused: '):
            pytest.skip(found)
        if found:
            pytest.fail(f'{pattern}: {found}', pytrace=False)


@pytest.mark.filterwarnings('ignore')
def test_every_step_is_clipped_or_optimizer_is_refused(entry: Entry, door: str):
    found = check_clip(entry, door)
    if found.startswith('refused: '):
        assert len(found) > 40, 'a refusal says why'
    elif found:
        pytest.fail(found, pytrace=False)
