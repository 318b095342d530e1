"""Start a worker under torchrun, once for all tests that use its results."""

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
    """Load the file that ``make`` writes; it runs once per session, also under pytest-xdist.

    Args:
        factory: pytest's ``tmp_path_factory``.
        name: name of the file.
        make: writes the file, whose path it gets, with ``torch.save``.
    """
    root = factory.getbasetemp()
    if 'PYTEST_XDIST_WORKER' in os.environ:
        root = root.parent
    file = root / f'{name}.pt'
    failed = file.with_suffix('.failed')
    with FileLock(f'{file}.lock'):
        # Do not retry for each test.
        assert not failed.exists(), failed.read_text()
        if not file.exists():
            try:
                make(file)
            except BaseException as error:
                failed.write_text(str(error))
                raise
    return torch.load(file, weights_only=True)


def command(worker: Path, processes: int, torchrun: bool = False) -> list[str]:
    """The command line of a worker: torchrun, or plain Python for one process by default."""
    if processes == 1 and not torchrun:
        return [sys.executable, str(worker)]
    launcher = ['-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={processes}']
    return [sys.executable, *launcher, str(worker)]


def environment() -> dict[str, str]:
    """The environment of a worker: this checkout, one thread per process."""
    quiet = dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1', PYTHONWARNINGS='ignore')
    return {**os.environ, **quiet}


def start(
    worker: Path, cases: dict[str, dict], processes: int, out: Path, torchrun: bool = False
) -> subprocess.CompletedProcess:
    """Run the cases in some processes; rank 0 saves the results in ``out``."""
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
    """Run the cases and return their results."""
    done = start(worker, cases, processes, out, torchrun)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return torch.load(out, weights_only=True)
