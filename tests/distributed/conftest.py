"""Results of the engine in one, two and four processes, computed once for all tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.engine_cases import CASES, FOUR, HALVES, WORKER, second_halves
from tests.distributed.launching import launch, once


@pytest.fixture(scope='session')
def engine_results(tmp_path_factory) -> dict[int, dict]:
    """Results of all cases: number of processes -> case -> result."""

    def make(file: Path) -> None:
        import torch

        outs = {n: file.with_suffix(f'.{n}') for n in (1, 2, 4)}
        found = {2: launch(WORKER, {**CASES, **HALVES}, 2, outs[2])}
        later = second_halves(outs[2])
        found[1] = launch(WORKER, {**CASES, **FOUR, **later}, 1, outs[1])
        found[4] = launch(WORKER, {**FOUR, **later}, 4, outs[4])
        torch.save(found, file)

    return once(tmp_path_factory, 'engines', make)
