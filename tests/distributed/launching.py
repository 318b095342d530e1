"""Starts a worker under torchrun, once for all the tests that look at what it found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

ROOT = Path(__file__).resolve().parents[2]


def once(factory: Any, name: str, make: Callable[[Path], None]) -> Any:
    """What ``make`` writes into the file that it is given; made once, also under pytest-xdist.

    Args:
        factory: pytest's ``tmp_path_factory``.
        name: of the file.
        make: writes it with ``torch.save``.
    """
    root = factory.getbasetemp()
    if 'PYTEST_XDIST_WORKER' in os.environ:
        root = root.parent
    file = root / f'{name}.pt'
    failed = file.with_suffix('.failed')
    with FileLock(f'{file}.lock'):
        # Not tried again for each of the tests that ask.
        assert not failed.exists(), failed.read_text()
        if not file.exists():
            try:
                make(file)
            except BaseException as error:
                failed.write_text(str(error))
                raise
    return torch.load(file, weights_only=True)


def command(worker: Path, processes: int, torchrun: bool = False) -> list[str]:
    """How to start a worker: under torchrun; or one process by itself, unless that is asked for."""
    if processes == 1 and not torchrun:
        return [sys.executable, str(worker)]
    launcher = ['-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={processes}']
    return [sys.executable, *launcher, str(worker)]


def environment() -> dict[str, str]:
    """The environment of a worker: this checkout, one thread a process."""
    quiet = dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1', PYTHONWARNINGS='ignore')
    return {**os.environ, **quiet}


def start(
    worker: Path, cases: dict[str, dict], processes: int, out: Path, torchrun: bool = False
) -> subprocess.CompletedProcess:
    """Run the cases in some processes; rank 0 leaves the results in ``out``."""
    file = out.with_suffix(f'.{processes}.json')
    file.write_text(json.dumps(cases))
    return subprocess.run(
        [*command(worker, processes, torchrun), str(file), str(out)],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )


def launch(
    worker: Path, cases: dict[str, dict], processes: int, out: Path, torchrun: bool = False
) -> Any:
    """The results of the cases."""
    done = start(worker, cases, processes, out, torchrun)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return torch.load(out, weights_only=True)
