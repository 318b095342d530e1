"""Norms of gradients that are sharded over processes: FSDP2, tensor parallelism, FSDP1.

A rank holds a shard of a tensor, but the norm needs all shards. Powers are summed only over the
mesh dimensions that shard a tensor, so that a replicated tensor counts once. Each process group
takes one all-reduce of a small vector.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ...compat import dtensor_class, flat_handle
from ..checks import ClipConfigError

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


class ShardSpec(NamedTuple):
    """How one parameter is sharded.

    Attributes:
        groups: the process groups that hold its elements, one for each sharded mesh dimension.
        dims: the tensor dimension that each group shards; None if the elements are flattened
            (FSDP1), because rows and filters are then unknown. A flattened parameter that every
            rank holds whole has no groups and one None.
        shape: the shape of the whole parameter.
    """

    groups: tuple[dist.ProcessGroup, ...]
    dims: tuple[int | None, ...]
    shape: torch.Size


class FlatShard(NamedTuple):
    """How FSDP1 holds one parameter.

    Attributes:
        group: the processes that hold its elements; None if each process holds all of them.
        shape: the shape of the whole parameter.
        is_joined: whether it concatenates several flattened parameters of the model.
    """

    group: dist.ProcessGroup | None
    shape: torch.Size
    is_joined: bool


class Sharding:
    """The sharding of the parameters of a view.

    The missing gradients may differ between ranks, since a rank can hold an empty shard. Values are
    therefore exchanged for all parameters of the route, with or without a gradient.

    Args:
        specs: one for each parameter of the route; None for a parameter that every rank holds
            whole.
        slots: the indices among them of the N parameters with a gradient on this rank.
    """

    def __init__(self, specs: list[ShardSpec | None], slots: list[int]) -> None:
        self.specs = specs
        self._slots = slots
        self._members: dict[dist.ProcessGroup, list[int]] = {}
        for i, spec in enumerate(specs):
            for group in () if spec is None else spec.groups:
                self._members.setdefault(group, []).append(i)
        self._rows: dict[dist.ProcessGroup, Tensor] | None = None

    @property
    def shapes(self) -> dict[int, torch.Size]:
        """The shapes of the sharded parameters before sharding, by slot."""
        return {slot: spec.shape for slot, spec in enumerate(self.specs) if spec is not None}

    def sum(self, values: Tensor) -> Tensor:
        """Sum values (N, ...) of this rank over the shards of each tensor."""
        return self._exchange(values, dist.ReduceOp.SUM)

    def norms(self, norms: Tensor, p: float) -> Tensor:
        """Convert p-norms (N,) of this rank's shards to p-norms (N,) of the whole tensors."""
        if p == math.inf:
            return self._exchange(norms, dist.ReduceOp.MAX)
        # In float64 the powers of float32 norms neither over- nor underflow for any usual p.
        return self.sum(norms.double() ** p) ** (1.0 / p)

    def _exchange(self, values: Tensor, op: dist.ReduceOp.RedOpType) -> Tensor:
        if self._rows is None:
            # Cached on the device: an index from the host would make the host wait in every step.
            self._index = torch.tensor(self._slots, device=values.device)
            self._rows = to_rows(self._members, values.device)
        everything = values.new_zeros(len(self.specs), *values.shape[1:])
        everything[self._index] = values
        return all_reduce_rows(everything, self._rows, op)[self._index]


def to_rows(
    members: dict[dist.ProcessGroup, list[int]], device: torch.device
) -> dict[dist.ProcessGroup, Tensor]:
    """The rows of each group as index tensors, in ascending order.

    A rank on which a group has all rows exchanges the vector without indexing, so its order has to
    agree with that of the other ranks.
    """
    return {group: torch.tensor(sorted(rows), device=device) for group, rows in members.items()}


def all_reduce_rows(
    values: Tensor,
    rows_of: dict[dist.ProcessGroup, Tensor],
    op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM,
) -> Tensor:
    """All-reduce the rows of each group in place, with one collective per group.

    Args:
        values: shape (N, ...).
        rows_of: the rows of each group, in the same order on every rank.
        op: the reduction.
    """
    for group, rows in rows_of.items():
        if len(rows) == len(values):
            dist.all_reduce(values, op=op, group=group)
        else:
            part = values[rows]
            dist.all_reduce(part, op=op, group=group)
            values[rows] = part
    return values


def find_sharding(
    params: list[Tensor], slots: list[int], flat_groups: dict[int, FlatShard]
) -> Sharding | None:
    """The sharding of some parameters, or None if every rank holds all of them whole.

    Args:
        params: all parameters of a route, DTensors or not.
        slots: the indices of the parameters with a gradient on this rank.
        flat_groups: the result of :func:`flat_param_groups`.

    Raises:
        ClipConfigError: a placement whose norm cannot be computed, or FSDP1 parameters of an
            unknown model.
    """
    if not dist.is_available():
        return None
    specs = [_shard_spec(param, flat_groups) for param in params]
    return Sharding(specs, slots) if any(spec is not None for spec in specs) else None


def _shard_spec(param: Tensor, flat_groups: dict[int, FlatShard]) -> ShardSpec | None:
    if is_dtensor(param):
        groups: list[dist.ProcessGroup] = []
        dims: list[int | None] = []
        for mesh_dim, placement in enumerate(param.placements):
            if placement.is_replicate():
                continue
            # Not is_shard(): that is False for the strided shards of FSDP2 over tensor parallelism.
            dim = getattr(placement, 'dim', None)
            if placement.is_partial() or dim is None:
                raise ClipConfigError(
                    f'clip_grad: a parameter is a DTensor with the placement {placement}, whose '
                    'norm is not defined before it is reduced: redistribute it to Shard or '
                    'Replicate'
                )
            if param.device_mesh.size(mesh_dim) > 1:
                groups.append(param.device_mesh.get_group(mesh_dim))
                dims.append(dim)
        return ShardSpec(tuple(groups), tuple(dims), param.shape) if groups else None
    if id(param) in flat_groups:
        group, shape, is_joined = flat_groups[id(param)]
        if group is None and not is_joined:
            return None
        return ShardSpec(() if group is None else (group,), (None,), shape)
    if getattr(param, '_fsdp_flattened', False):
        raise ClipConfigError(
            'clip_grad: the optimizer holds FSDP1 parameters, of which each rank sees a part: pass '
            'the wrapped model (attach(optimizer, clip_grad, model=model)) so that norms are global'
        )
    return None


def flat_param_groups(model: nn.Module | None) -> dict[int, FlatShard]:
    """How FSDP1 holds each parameter, by the ``id`` of the parameter."""
    if model is None or not dist.is_available() or not dist.is_initialized():
        return {}
    from torch.distributed.fsdp import FullyShardedDataParallel

    found = {}
    for module in FullyShardedDataParallel.fsdp_modules(model):
        handle = flat_handle(module)
        if handle is not None:
            # NO_SHARD does not shard; FSDP always selects it for a single process.
            is_spread = handle.uses_sharded_strategy and handle.process_group.size() > 1
            flat, group = handle.flat_param, handle.process_group if is_spread else None
            found[id(flat)] = FlatShard(group, flat._unpadded_unsharded_size, True)
            # With use_orig_params=True the optimizer holds the original parameters.
            originals = getattr(flat, '_params', None) or ()
            for param, shape in zip(originals, flat._shapes, strict=bool(originals)):
                found[id(param)] = FlatShard(group, shape, False)
    return found


def is_spread_flat(model: nn.Module | None) -> bool:
    """Whether FSDP1 shards parameters of the model over processes."""
    return any(flat.group is not None for flat in flat_param_groups(model).values())


def is_dtensor(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether this is a ``torch.distributed.tensor.DTensor``."""
    if type(tensor) in (Tensor, nn.Parameter) or not dist.is_available():
        return False
    kind = dtensor_class()
    if kind is None and type(tensor).__name__ == 'DTensor':
        raise ClipConfigError('clip_grad: clipping DTensors needs PyTorch 2.4 or later')
    return kind is not None and isinstance(tensor, kind)


def gather(part: Tensor, param: Tensor) -> Tensor:
    """Gather the shards of a tensor that is sharded like a parameter, on every rank.

    A collective if the parameter is a DTensor; otherwise ``part`` is returned.
    """
    if not is_dtensor(param):
        return part
    whole: Tensor = (
        dtensor_class()
        .from_local(
            part,
            param.device_mesh,
            param.placements,
            run_check=False,
            shape=param.shape,
            stride=param.stride(),
        )
        .full_tensor()
    )
    return whole


def scatter(whole: Tensor, param: Tensor) -> Tensor:
    """The inverse of :func:`gather`, for any number of shards."""
    if not is_dtensor(param):
        return whole
    mesh = param.device_mesh
    cuts = [
        (placement.is_shard(), mesh_dim, placement.dim)  # type: ignore[attr-defined]
        for mesh_dim, placement in enumerate(param.placements)
        if not placement.is_replicate()
    ]
    # distribute_tensor rejects strided shards. They split what tensor parallelism has split.
    for _, mesh_dim, dim in sorted(cuts, key=lambda cut: not cut[0]):
        parts, own = whole.chunk(mesh.size(mesh_dim), dim), mesh.get_local_rank(mesh_dim)
        whole = parts[own] if own < len(parts) else whole.narrow(dim, 0, 0)
    return whole.contiguous()


def to_local(tensor: Tensor) -> Tensor:
    """The local shard of a DTensor, without a copy; any other tensor is returned."""
    return tensor.to_local() if is_dtensor(tensor) else tensor
