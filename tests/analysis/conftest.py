"""The toy task of the commands' tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from .run_logs import killed_run  # noqa: F401
from .spike_data import faulty_images, spiked_run  # noqa: F401

TOY = Path(__file__).resolve().parents[1] / 'cli' / 'toy'


@pytest.fixture
def toy_config(monkeypatch) -> str:
    """Path of the toy config, its task importable."""
    monkeypatch.syspath_prepend(str(TOY))
    return str(TOY / 'toy.py')
