"""Unit norms of parameters that are sharded over processes (DTensor).

If the shard boundary lies between units, as when FSDP2 shards a convolution by its filters, each
rank holds whole units and only totals are exchanged. If it cuts through units, as with a bias or a
transposed convolution, the squares of the unit norms are summed.
"""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor

from ..checks import ClipConfigError
from .names import ParamInfo
from .sharding import ShardSpec, all_reduce_rows, to_rows
from .units import UnitLayout


class UnitReduction:
    """Reduces the flat vector of unit norms of one view over the processes.

    Args:
        infos: the P parameters, in their order in the flat vector.
        layouts: their unit layouts; they decide where a shard boundary lies.
        specs: how each is sharded; None for a parameter that every rank holds whole.
        sizes: number of local units of each; U in total.
        device: device of the norms.

    Raises:
        ClipConfigError: a parameter is sharded in a way that does not preserve its units.
    """

    def __init__(
        self,
        infos: list[ParamInfo],
        layouts: list[UnitLayout],
        specs: list[ShardSpec | None],
        sizes: list[int],
        device: torch.device,
    ) -> None:
        self.segment = torch.repeat_interleave(torch.arange(len(infos)), torch.tensor(sizes)).to(
            device
        )
        starts = [sum(sizes[:k]) for k in range(len(sizes))]
        units, params = sum(sizes), len(infos)
        # Rows of the exchanged vector: squares of the gradient's units, squares of the weight's
        # units, and the sum over each parameter.
        measured: dict[dist.ProcessGroup, list[int]] = {}
        spread: dict[dist.ProcessGroup, list[int]] = {}
        for k, (spec, info, layout) in enumerate(zip(specs, infos, layouts, strict=True)):
            if spec is not None and None in spec.dims:
                raise ClipConfigError(
                    f'clip_grad: AGC and Auto cannot find the units of {info.name}: FSDP1 lays it '
                    'out flat. Shard with FSDP2 (torch.distributed.fsdp.fully_shard), or take '
                    'NormClip or ParamNormClip'
                )
            for group, dim in () if spec is None else zip(spec.groups, spec.dims, strict=True):
                if layout.groups is not None:
                    raise ClipConfigError(
                        f'clip_grad: AGC and Auto cannot find the units of {info.name}, a '
                        "grouped transposed convolution that is sharded: add it to 'exclude'"
                    )
                rows = measured.setdefault(group, [])
                rows.append(2 * units + k)
                assert dim is not None  # refused above
                if layout.dims is None or dim % info.param.ndim in layout.dims:
                    here = range(starts[k], starts[k] + sizes[k])
                    rows.extend(here)
                    rows.extend(units + i for i in here)
                else:
                    spread.setdefault(group, []).append(k)
        self._units, self._params = units, params
        self._measured = to_rows(measured, device)
        self._spread = to_rows(spread, device)
        self.count = sum(
            math.prod(layout.shape(info.param)) for layout, info in zip(layouts, infos, strict=True)
        )
        #: Norms of the weights' units (U,), set by :meth:`measure`.
        self.weights: Tensor | None = None

    def measure(self, grads: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """The norm of all gradients, 0-d, and the gradient norms of the local units, (U,)."""
        squares = grads.double().square()
        vector = torch.cat([squares, weights.double().square(), self._per_param(squares)])
        all_reduce_rows(vector, self._measured)
        sizes = [self._units, self._units, self._params]
        norms, weights_squared, sums = vector.split(sizes)  # type: ignore[no-untyped-call]
        self.weights = weights_squared.sqrt()
        return sums.sum().sqrt(), norms.sqrt()

    def totals(
        self, post: Tensor, limits: Tensor, over: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, int]:
        """Norm after clipping, norm of all limits, clipped units and units of all processes."""
        columns = [post.square(), limits.square(), over.double()]
        table = torch.stack([self._per_param(column) for column in columns], dim=1)
        all_reduce_rows(table, self._spread)
        post_sum, limit_sum, clipped = table.sum(0)
        return post_sum.sqrt(), limit_sum.sqrt(), clipped, self.count

    def sums(self, values: Tensor) -> Tensor:
        """Sums (P, K) over the units of each parameter, given values (U, K) of the local units."""
        table = values.new_zeros(self._params, values.shape[1])
        return all_reduce_rows(table.index_add_(0, self.segment, values), self._spread)

    def _per_param(self, values: Tensor) -> Tensor:
        return values.new_zeros(self._params).index_add_(0, self.segment, values)
