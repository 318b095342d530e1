"""Splits large tensors into pieces, for rules that change single elements."""

from __future__ import annotations

from torch import Tensor

from .rows import in_line

# Elements of a piece. On a CPU, 512 KiB of float32 stay in a core's cache through several passes,
# so that memory is read and written once. On other devices the size bounds the scratch memory.
_CHUNK_CPU = 1 << 17
_CHUNK = 1 << 24


def chunk_size(tensor: Tensor) -> int:
    """Number of elements of a piece on the device of a tensor."""
    return _CHUNK_CPU if tensor.device.type == 'cpu' else _CHUNK


def pieces(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """Split tensors of one shape into the same pieces.

    Returns:
        Views that cover the tensors, one tuple for each piece, one view for each tensor. Tensors
        with different strides, or with gaps in memory, are returned as one piece.
    """
    first = tensors[0]
    size = chunk_size(first)
    if first.numel() <= size or any(tensor.stride() != first.stride() for tensor in tensors):
        return [tensors]
    lines = [line for tensor in tensors if (line := in_line(tensor)) is not None]
    if len(lines) < len(tensors):
        return [tensors]
    return list(zip(*(line.split(size) for line in lines), strict=True))  # type: ignore[no-untyped-call]
