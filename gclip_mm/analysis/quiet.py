"""Keeps the log of the packages below us out of a tool's own output."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_logs(level: int = logging.WARNING) -> Iterator[None]:
    """Let nothing up to ``level`` be logged within the block."""
    before = logging.root.manager.disable
    logging.disable(max(before, level))
    try:
        yield
    finally:
        logging.disable(before)
