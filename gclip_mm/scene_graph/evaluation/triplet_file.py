"""Reads lists of zero-shot triplets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..datasets.json_file import read_json

#: Files of Scene-Graph-Benchmark and PySGG: a (Z, 3) tensor of labels that count from 1.
_TORCH = ('.pytorch', '.pt', '.pth')
_ENDINGS = ('.json', '.npy', *_TORCH)
_PARTS = ('subject', 'object', 'predicate')


def load_triplets(
    file: str | Path, classes: Sequence[str] = (), predicates: Sequence[str] = ()
) -> frozenset[tuple[int, int, int]]:
    """Read (subject class, object class, predicate) triplets.

    Args:
        file: ``.json``, a list of triplets of names or of 0-based labels; ``.npy``, (Z, 3) int,
            0-based labels; or ``.pytorch``, ``.pt`` or ``.pth``, a (Z, 3) tensor of labels that
            count from 1, such as ``zeroshot_triplet.pytorch`` of Scene-Graph-Benchmark.
        classes, predicates: Names in label order.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file has another ending or content, or a name or label is unknown.
    """
    path = Path(file)
    if path.suffix not in _ENDINGS:
        raise ValueError(f'{file} must end in one of {_ENDINGS}')
    if not path.is_file():
        raise FileNotFoundError(f'{file} does not exist')
    if path.suffix == '.json':
        rows: Any = read_json(path, expect=list)
    elif path.suffix == '.npy':
        rows = np.load(path, allow_pickle=False).tolist()
    else:
        import torch

        rows = (torch.load(path, map_location='cpu', weights_only=True) - 1).tolist()
    names = (classes, classes, predicates)
    return frozenset(_labels(row, names, f'{file}, triplet {i}') for i, row in enumerate(rows))


def _labels(row: Any, names: Sequence[Sequence[str]], where: str) -> tuple[int, int, int]:
    if not isinstance(row, list) or len(row) != 3:
        raise ValueError(f'{where} must be [subject, object, predicate], got {row}')
    labels = []
    for part, value, known in zip(_PARTS, row, names, strict=True):
        if isinstance(value, str):
            if value not in known:
                raise ValueError(f'{where}: unknown {part} {value!r}; valid: {list(known)}')
            labels.append(list(known).index(value))
        elif isinstance(value, int) and value >= 0 and not (known and value >= len(known)):
            labels.append(value)
        else:
            limit = f'in [0, {len(known)})' if known else 'at least 0'
            raise ValueError(f'{where}: the {part} must be a name or {limit}, got {value!r}')
    return labels[0], labels[1], labels[2]
