"""Finds the names of the images of a batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.structures import BaseDataElement


def batch_images(data_batch: Any) -> list[dict[str, Any]]:
    """The images of a batch, each as ``dict(img_id=..., img_path=...)`` with the keys it has.

    Searches dicts and lists (such as the branches of semi-supervised training) for data samples
    with ``img_path`` or ``img_id`` in their meta information.

    Args:
        data_batch: the batch, as the data loader returned it.
    """
    images = []
    for meta in _metas(data_batch):
        image = {key: _plain(meta[key]) for key in ('img_id', 'img_path') if key in meta}
        if image:
            images.append(image)
    return images


def _metas(value: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(value, BaseDataElement):
        yield value.metainfo
    elif isinstance(value, Mapping):
        if 'img_path' in value or 'img_id' in value:
            yield from _rows(value)
        else:
            for item in value.values():
                yield from _metas(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _metas(item)


def _rows(value: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The images of a dict with one image, or with a list of images for each key."""
    columns = {k: _column(value[k]) for k in ('img_id', 'img_path') if k in value}
    for i in range(max(map(len, columns.values()))):
        yield {key: column[i] for key, column in columns.items() if i < len(column)}


def _column(value: Any) -> list[Any]:
    """One entry for each image; PyTorch's ``default_collate`` turns numbers into tensors."""
    value = value.tolist() if hasattr(value, 'tolist') else value
    return list(value) if isinstance(value, list | tuple) else [value]


def _plain(value: Any) -> Any:
    value = value.tolist() if hasattr(value, 'tolist') else value
    return value if isinstance(value, int | float | str) else str(value)
