"""The toy task that the commands run on."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from gclip_mm.cli import train as train_command
from tests.analysis.run_logs import killed_run  # noqa: F401
from tests.analysis.spike_data import faulty_images, spiked_run  # noqa: F401

ROOT = Path(__file__).resolve().parents[2]
TOY = Path(__file__).parent / 'toy'


@pytest.fixture
def toy_config(monkeypatch) -> str:
    """Path of the toy config, its task importable."""
    monkeypatch.syspath_prepend(str(TOY))
    return str(TOY / 'toy.py')


@pytest.fixture
def train(toy_config, tmp_path):
    """Run ``gclip train`` in this process on the toy config, in ``tmp_path / name``."""
    counter = itertools.count()

    def run(name: str, *arguments: str) -> Path:
        # MMEngine keeps one message hub per experiment and names experiments by the second.
        options = [f'experiment_name={tmp_path.name}_{next(counter)}']
        if '--cfg-options' in arguments:
            at = arguments.index('--cfg-options')
            options += arguments[at + 1 :]
            arguments = arguments[:at]
        work_dir = tmp_path / name
        train_command.main(
            [toy_config, '--work-dir', str(work_dir), *arguments, '--cfg-options', *options]
        )
        return work_dir

    return run
