"""Copies of the fields of a rule's state: tensors, lists of tensors, and numbers."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def copied(value: Any) -> Any:
    """A copy of a field of the state, or of all fields."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: copied(item) for key, item in value.items()}
    return [copied(item) for item in value] if isinstance(value, list) else value


def moved(value: Any, slots: list[int | None], begin: Any) -> Any:
    """A per-parameter field, reordered; ``slots`` and ``begin`` are those of ``Clipper.follow``."""
    if isinstance(value, list):
        return [begin if slot is None else value[slot] for slot in slots]
    result = value.new_full((len(slots), *value.shape[1:]), begin)
    places = [i for i, slot in enumerate(slots) if slot is not None]
    result[places] = value[[slots[i] for i in places]]
    return result


def placed(value: Any, params: list[Tensor]) -> Any:
    """A copy of a field of the state on the devices of the parameters."""
    if isinstance(value, Tensor):
        return value.detach().clone().to(params[0].device)
    if not isinstance(value, list):
        return value
    return [
        item if item is None else item.detach().clone().to(param.device)
        for item, param in zip(value, params, strict=True)
    ]
