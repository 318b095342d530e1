"""Buffers of a skipped step are restored on every rank, whichever rank saw the infinite pixel."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from tests.distributed.launching import launch, once

pytestmark = pytest.mark.timeout(900)

WORKER = Path(__file__).with_name('buffers_worker.py')
CASES = {
    f'{"sync" if sync else "plain"}-{"broadcast" if broadcast else "own"}-{accumulate}': dict(
        sync=sync, broadcast=broadcast, accumulate=accumulate, compiled=False
    )
    for sync, broadcast, accumulate in itertools.product((False, True), (False, True), (1, 2))
}
CASES['compiled'] = dict(sync=False, broadcast=True, accumulate=1, compiled=True)


@pytest.fixture(scope='session')
def results(tmp_path_factory) -> dict[str, dict]:
    def make(file: Path) -> None:
        launch(WORKER, CASES, 2, file)

    return once(tmp_path_factory, 'buffers', make)


@pytest.mark.parametrize('case', CASES)
def test_ddp_run_with_a_skipped_step_equals_a_run_without_it(results, case):
    assert results[case] == dict(equal=True, finite=True)
