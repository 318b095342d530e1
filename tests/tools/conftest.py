"""The command-line tools as modules, and the toy task that they run on."""

from __future__ import annotations

import importlib.util
import itertools
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOY = Path(__file__).parent / 'toy'


def load_tool(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f'tool_{path.stem}', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='session')
def train_tool() -> ModuleType:
    return load_tool(ROOT / 'tools' / 'train.py')


@pytest.fixture(scope='session')
def test_tool() -> ModuleType:
    return load_tool(ROOT / 'tools' / 'test.py')


@pytest.fixture
def toy_config(monkeypatch) -> str:
    """Path of the toy config, its task importable."""
    monkeypatch.syspath_prepend(str(TOY))
    return str(TOY / 'toy.py')


@pytest.fixture
def train(train_tool, toy_config, tmp_path):
    """Run ``tools/train.py`` in this process on the toy config, in ``tmp_path / name``."""
    counter = itertools.count()

    def run(name: str, *arguments: str) -> Path:
        # MMEngine keeps one message hub an experiment and names experiments by the second.
        options = [f'experiment_name={tmp_path.name}_{next(counter)}']
        if '--cfg-options' in arguments:
            at = arguments.index('--cfg-options')
            options += arguments[at + 1 :]
            arguments = arguments[:at]
        work_dir = tmp_path / name
        train_tool.main(
            [toy_config, '--work-dir', str(work_dir), *arguments, '--cfg-options', *options]
        )
        return work_dir

    return run
