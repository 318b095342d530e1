"""Norms of gradients that are spread over processes: FSDP2, tensor parallelism, FSDP1.

A rank holds a part of a tensor; its norm needs the parts of the others. Powers are summed where a
tensor is sharded and nowhere else, so that a replicated tensor counts once, and everything that has
to cross a mesh dimension crosses it in one all-reduce of a small vector.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..checks import ClipConfigError

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


class ShardSpec(NamedTuple):
    """How one parameter is spread.

    Attributes:
        groups: the process groups that its elements are spread over, one a sharded mesh dimension.
        dims: for each of them, the tensor dimension that is cut; None where the elements lie flat
            (FSDP1), so that rows and filters cannot be told apart. Of such a one that every rank
            holds whole, which has no groups, there is one None.
        shape: the shape of the whole parameter.
    """

    groups: tuple[dist.ProcessGroup, ...]
    dims: tuple[int | None, ...]
    shape: torch.Size


class FlatShard(NamedTuple):
    """How FSDP1 holds one parameter.

    Attributes:
        group: the processes that its elements are spread over; None where each holds all of it.
        shape: its shape when whole.
        is_joined: whether it is several of the model's, laid out flat one behind the other.
    """

    group: dist.ProcessGroup | None
    shape: torch.Size
    is_joined: bool


class Sharding:
    """The sharding of the parameters of a view.

    Which gradients are missing may differ between ranks, since a rank can hold an empty part, so
    that everything is exchanged for all parameters of the route and not for the live ones only.

    Args:
        specs: one for each parameter of the route; None for one that every rank holds whole.
        slots: the places among them of the N whose gradient is here.
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
        """Sum over the shards: values (N, ...) of this rank -> values of the whole tensors."""
        return self._exchange(values, dist.ReduceOp.SUM)

    def norms(self, norms: Tensor, p: float) -> Tensor:
        """p-norms of this rank's parts (N,) -> p-norms of the whole tensors (N,)."""
        if p == math.inf:
            return self._exchange(norms, dist.ReduceOp.MAX)
        # In float64 the powers of float32 norms neither over- nor underflow for any usual p.
        return self.sum(norms.double() ** p) ** (1.0 / p)

    def _exchange(self, values: Tensor, op: dist.ReduceOp.RedOpType) -> Tensor:
        if self._rows is None:
            # Kept on the device: an index from the host would make it wait in every step.
            self._index = torch.tensor(self._slots, device=values.device)
            self._rows = to_rows(self._members, values.device)
        everything = values.new_zeros(len(self.specs), *values.shape[1:])
        everything[self._index] = values
        return all_reduce_rows(everything, self._rows, op)[self._index]


def to_rows(
    members: dict[dist.ProcessGroup, list[int]], device: torch.device
) -> dict[dist.ProcessGroup, Tensor]:
    """The rows of each group as index tensors.

    In ascending order, so that a rank on which they are all rows, and which exchanges the vector as
    it is, agrees with one that picks them out.
    """
    return {group: torch.tensor(sorted(rows), device=device) for group, rows in members.items()}


def all_reduce_rows(
    values: Tensor,
    rows_of: dict[dist.ProcessGroup, Tensor],
    op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM,
) -> Tensor:
    """All-reduce in place the rows that each group shares, one collective a group.

    Args:
        values: shape (N, ...).
        rows_of: the rows of each group, in the same order on every rank.
        op: how rows are combined.
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
    """The sharding of some parameters, or None where every rank holds all of them whole.

    Args:
        params: all parameters of a route, DTensors among them or not.
        slots: the places of those whose gradient is here.
        flat_groups: what :func:`flat_param_groups` returns.

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
    """FSDP1: how each parameter is held, by its ``id``."""
    if model is None or not dist.is_available() or not dist.is_initialized():
        return {}
    from torch.distributed.fsdp import FullyShardedDataParallel

    found = {}
    for module in FullyShardedDataParallel.fsdp_modules(model):
        handle = module._handle
        if handle is not None:
            # Not sharded by NO_SHARD, which a single process gets whatever it asks for.
            is_spread = handle.uses_sharded_strategy and handle.process_group.size() > 1
            flat, group = handle.flat_param, handle.process_group if is_spread else None
            found[id(flat)] = FlatShard(group, flat._unpadded_unsharded_size, True)
            # With use_orig_params=True the optimizer holds these instead.
            originals = getattr(flat, '_params', None) or ()
            for param, shape in zip(originals, flat._shapes, strict=bool(originals)):
                found[id(param)] = FlatShard(group, shape, False)
    return found


def is_spread_flat(model: nn.Module | None) -> bool:
    """Whether FSDP1 spreads parameters of the model over processes."""
    return any(flat.group is not None for flat in flat_param_groups(model).values())


def is_dtensor(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether this is a ``torch.distributed.tensor.DTensor``."""
    if type(tensor) in (Tensor, nn.Parameter) or not dist.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def gather(part: Tensor, param: Tensor) -> Tensor:
    """This rank's part of something laid out like a parameter -> the whole, on every rank.

    A collective where the parameter is a DTensor; anything else is returned as it is.
    """
    if not is_dtensor(param):
        return part
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        part,
        param.device_mesh,
        param.placements,
        run_check=False,
        shape=param.shape,
        stride=param.stride(),
    ).full_tensor()


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
    # distribute_tensor refuses strided shards. They cut what tensor parallelism has cut before.
    for _, mesh_dim, dim in sorted(cuts, key=lambda cut: not cut[0]):
        parts, own = whole.chunk(mesh.size(mesh_dim), dim), mesh.get_local_rank(mesh_dim)
        whole = parts[own] if own < len(parts) else whole.narrow(dim, 0, 0)
    return whole.contiguous()


def to_local(tensor: Tensor) -> Tensor:
    """This rank's part of a DTensor (its own memory, no copy); any other tensor itself."""
    return tensor.to_local() if is_dtensor(tensor) else tensor
