"""Walking through large tensors piece by piece, for rules that look at single elements."""

from __future__ import annotations

from torch import Tensor

# Elements handled at a time. On the CPU 512 KiB of float32 stay in a core's cache through several
# passes, so that memory is read once and written once. Elsewhere it bounds the scratch memory.
_CHUNK_CPU = 1 << 17
_CHUNK = 1 << 24


def pieces(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """Views that together cover tensors of one shape, cut alike; a tuple for each piece."""
    size = _CHUNK_CPU if tensors[0].device.type == 'cpu' else _CHUNK
    if tensors[0].numel() <= size or not all(tensor.is_contiguous() for tensor in tensors):
        return [tensors]
    return list(zip(*(tensor.view(-1).split(size) for tensor in tensors), strict=True))
