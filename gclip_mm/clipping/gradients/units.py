"""The units of adaptive clipping: which weights of a parameter share one norm.

A unit holds the weights of one output of a layer: a filter of a convolution, a row of a linear
layer or of an embedding. The axis of the outputs depends on the module, not on the shape alone: a
transposed convolution keeps its output channels in the second axis.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn


class UnitLayout(NamedTuple):
    """How the units of a parameter lie in memory.

    Attributes:
        dims: axes that a unit spans (after splitting); None: the whole tensor is one unit.
        groups: the first axis is split into ``(groups, -1)`` before; None: it is not split.
    """

    dims: tuple[int, ...] | None
    groups: int | None = None

    def split(self, tensor: Tensor) -> Tensor:
        """The tensor with its first axis split; a view."""
        if self.groups is None:
            return tensor
        split: Tensor = tensor.unflatten(0, (self.groups, -1))  # type: ignore[no-untyped-call]
        return split

    def shape(self, tensor: Tensor) -> tuple[int, ...]:
        """Shape of the unit norms, broadcastable against :meth:`split`; () for one unit."""
        if self.dims is None:
            return ()
        sizes = self.split(tensor).shape
        return tuple(1 if i in self.dims else n for i, n in enumerate(sizes))

    def runs(self, tensor: Tensor) -> tuple[int, int] | None:
        """Number of units and elements of each, if the units of a contiguous tensor are contiguous.

        None if they are not, as with columns.
        """
        if self.dims is None:
            return 1, tensor.numel()
        if self.groups is not None or self.dims != tuple(range(1, tensor.ndim)):
            return None
        return tensor.shape[0], math.prod(tensor.shape[1:])

    def norms(self, tensor: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """2-norm of every unit, in the shape of :meth:`shape`."""
        if self.dims is None:
            norms: Tensor = torch.linalg.vector_norm(tensor, dtype=dtype)
        else:
            norms = torch.linalg.vector_norm(
                self.split(tensor), dim=self.dims, keepdim=True, dtype=dtype
            )
        return norms


WHOLE = UnitLayout(None)


def unit_layout(param: Tensor, module: nn.Module | None = None, attribute: str = '') -> UnitLayout:
    """The unit layout of a parameter.

    Args:
        param: the parameter, of any shape.
        module: the module that owns it; if None, the shape alone decides.
        attribute: its name within the module.

    Returns:
        UnitLayout: one unit for anything that is a vector (a bias, the gain of a norm layer, an
        (N, 1) weight, as in the NFNets definition); output channels for a transposed convolution;
        otherwise one unit for each index of the first axis. That holds for Linear, Conv1d/2d/3d
        grouped or not, Embedding, recurrent weights (a row for each gate unit), and the packed
        ``in_proj_weight`` of MultiheadAttention (a row for each query, key and value unit).
    """
    if sum(n != 1 for n in param.shape) <= 1:
        return WHOLE
    is_transposed = getattr(module, 'transposed', False) is True
    # spectral_norm and weight_norm rename the weight to weight_orig and weight_v.
    is_weight = attribute in ('weight', 'weight_orig', 'weight_v')
    if is_transposed and is_weight and param.ndim >= 3:
        # (in, out / groups, *kernel): the output channels of group k are fed by the k-th block of
        # input channels only.
        groups: int = getattr(module, 'groups', 1)
        if groups == 1:
            return UnitLayout((0, *range(2, param.ndim)))
        return UnitLayout((1, *range(3, param.ndim + 1)), groups)
    return UnitLayout(tuple(range(1, param.ndim)))
