"""Tells whether two data sets have the same annotations."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np


def fingerprint_of(dataset: Any, **options: Any) -> str:
    """Fingerprint of the annotations and names of a data set, or of a wrapper around several.

    Args:
        dataset: Its local annotation file is hashed; without one, its samples.
        **options: What else has to be equal; JSON values.

    Returns:
        A SHA-256 as hexadecimal text. A renamed or moved file has the same one.
    """
    digest = hashlib.sha256(json.dumps(options, sort_keys=True).encode())
    _update(digest, dataset)
    return digest.hexdigest()


def _update(digest: Any, dataset: Any) -> None:
    parts = getattr(dataset, 'datasets', None)
    if parts is None and hasattr(dataset, 'dataset'):
        parts = [dataset.dataset]
    if parts is not None:
        for part in parts:
            _update(digest, part)
        return
    meta = dataset.metainfo
    names = {key: list(meta.get(key) or ()) for key in ('classes', 'predicates')}
    chosen = [len(dataset), getattr(dataset, 'filter_cfg', None)]
    digest.update(json.dumps([names, chosen], sort_keys=True, default=str).encode())
    file = Path(str(getattr(dataset, 'ann_file', '')))
    if file.is_file():
        digest.update(hashlib.sha256(file.read_bytes()).digest())
        return
    for i in range(len(dataset)):
        info = dataset.get_data_info(i)
        objects = [(x['ann_id'], x['bbox_label'], x['bbox']) for x in info['instances']]
        digest.update(json.dumps(objects, default=float).encode())
        digest.update(np.asarray(info['relations'], np.int64).tobytes())
