"""Measuring and shortening the update of a step, a group of tensors at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..host import host
from .backend import Backend
from .movement import Movement


class UpdateParts:
    """The parameters of a view in groups whose movement fits into a small scratch memory.

    Args:
        numels: (N,) number of elements of each parameter (local shard).
        owner: (U,) which of the N parameters each unit belongs to.
        part: makes the backend of some of the parameters, given their indices.
    """

    def __init__(
        self, numels: list[int], owner: Tensor, part: Callable[[list[int]], Backend]
    ) -> None:
        groups = _grouped(numels, _SCRATCH[owner.device.type == 'cpu'])
        self._parts = [(places, part(places)) for places in groups]
        # What was measured is kept until it is shortened, if it is small.
        self._is_small = sum(numels) <= _KEPT
        self._deltas: dict[int, list[Tensor]] = {}
        owners = [
            torch.tensor(places, device=owner.device)[backend.unit_owner]
            for places, backend in self._parts
        ]
        self._sizes = list(map(len, owners))
        # The groups have their units in an order of their own.
        ours = torch.argsort(torch.cat(owners), stable=True)
        theirs = torch.argsort(owner, stable=True)
        self._to_parts = torch.empty_like(ours)
        self._to_parts[ours] = theirs
        self._from_parts = torch.empty_like(ours)
        self._from_parts[theirs] = ours

    def norms(self, movement: Movement) -> Tensor:
        """How far the last step has moved the units, (U,)."""
        norms = []
        for k, (places, backend) in enumerate(self._parts):
            deltas = movement.of(places)
            backend.load(deltas, False)
            norms.append(backend.unit_norms()[1].double())
            backend.load([], False)
            if self._is_small:
                self._deltas[k] = deltas
        return torch.cat(norms)[self._from_parts]

    def shorten(self, movement: Movement, coefs: Tensor, params: list[Tensor]) -> None:
        """Keep of each unit's movement the share ``coefs`` (U,), in place."""
        shares = torch.split(coefs[self._to_parts], self._sizes)
        for k, ((places, backend), share) in enumerate(zip(self._parts, shares, strict=True)):
            deltas = self._deltas.pop(k, None)
            values = host(share)
            if values is not None and (values == 1).all():
                continue
            deltas = movement.of(places) if deltas is None else deltas
            news, olds = [params[i] for i in places], movement.copies(places)
            if olds is None:
                backend.scale_units_of(deltas, 1 - share)
                torch._foreach_sub_(news, deltas)
                continue
            # From the copy: a movement much larger than the weights has lost their last digits.
            is_cut = (share < 1).to(share.dtype)
            olds = [old.clone() for old in olds]
            backend.scale_units_of(news, 1 - is_cut)
            backend.scale_units_of(olds, is_cut)
            backend.scale_units_of(deltas, is_cut * share)
            torch._foreach_add_(olds, deltas)
            torch._foreach_add_(news, olds)


#: Elements of a group: what stays in the cache of a core, or what keeps launches few.
_SCRATCH = {True: 1 << 17, False: 1 << 23}
#: Elements of all parameters up to which their movement is computed once.
_KEPT = 1 << 22


def _grouped(sizes: list[int], most: int) -> list[list[int]]:
    """Indices of tensors in groups of at most so many elements, or of one tensor."""
    groups: list[list[int]] = []
    total = 0
    for i, size in enumerate(sizes):
        if not groups or total + size > most:
            groups.append([])
            total = 0
        groups[-1].append(i)
        total += size
    return groups
