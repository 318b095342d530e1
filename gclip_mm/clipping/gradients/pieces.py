"""Walking through large tensors piece by piece, for rules that look at single elements."""

from __future__ import annotations

from torch import Tensor

from .rows import in_line

# Elements handled at a time. On the CPU 512 KiB of float32 stay in a core's cache through several
# passes, so that memory is read once and written once. Elsewhere it bounds the scratch memory.
_CHUNK_CPU = 1 << 17
_CHUNK = 1 << 24


def chunk_size(tensor: Tensor) -> int:
    """How many elements are handled at a time where a tensor lies."""
    return _CHUNK_CPU if tensor.device.type == 'cpu' else _CHUNK


def pieces(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """Views that together cover tensors of one shape, cut alike; a tuple for each piece.

    Tensors that lie in memory in different orders, or not side by side, are one piece.
    """
    first = tensors[0]
    size = chunk_size(first)
    if first.numel() <= size or any(tensor.stride() != first.stride() for tensor in tensors):
        return [tensors]
    lines = [line for tensor in tensors if (line := in_line(tensor)) is not None]
    if len(lines) < len(tensors):
        return [tensors]
    return list(zip(*(line.split(size) for line in lines), strict=True))  # type: ignore[no-untyped-call]
