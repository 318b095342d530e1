"""The containers of a checkpoint, read without a tensor and without running code of the file.

``torch.load`` reads MMEngine's checkpoints safely since PyTorch 2.6 only (its allow-list).
"""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any


def read_structure(path: str | Path) -> Any:
    """What a file of ``torch.save`` holds: dicts, lists, numbers and strings.

    Everything else, tensors included, is replaced by a placeholder.

    Args:
        path: a file in the zip format, which torch writes by default.

    Raises:
        Exception: the file is of another kind, or damaged.
    """
    with zipfile.ZipFile(path) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith('/data.pkl'))
        with archive.open(name) as file:
            return _StructureReader(file).load()


class _Placeholder:
    """Stands for an object of any class, and takes what a pickle does to it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> _Placeholder:
        return self

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        """An item of a subclass of list."""

    def extend(self, items: Any) -> None:
        """Items of a subclass of list."""

    def add(self, item: Any) -> None:
        """An item of a subclass of set."""


class _StructureReader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return _Placeholder

    def persistent_load(self, pid: Any) -> Any:
        return None
