"""The gradients of one route in one step, as its rule sees them."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..host import np
from .backend import Backend
from .kernel_backend import RouteUnits, make_backend
from .names import ParamInfo
from .sharding import Sharding
from .units import UnitLayout


class GradView:
    """The gradients of one route in one step, and data that stays the same between steps.

    A view is made once for a set of parameters with a gradient, and reused.

    Args:
        infos: the N parameters of the route that have a gradient.
        positions: their indices among all parameters of the optimizer, (N,).
        slots: their indices among all parameters of the route, (N,). Per-parameter state is indexed
            by slot, since a gradient may be missing in some steps.
        size: number of parameters of the route.
        sharding: how the parameters are sharded over processes; None: every rank holds all of them.
        backend: reads and writes the gradients; None: the fastest one for the parameters.
        units: the units of all parameters of the route, for views that share them.

    Attributes:
        backend: reads and writes the gradients.
        folds: whether the optimizer's kernel applies the coefficient of this step. The norm then
            need not be bit-identical to torch's.
        may_write_early: whether a rule may clip while it measures, because the gradients of a
            non-finite step are dropped.
    """

    def __init__(
        self,
        infos: list[ParamInfo],
        positions: list[int],
        slots: list[int],
        size: int,
        sharding: Sharding | None = None,
        backend: Backend | None = None,
        units: RouteUnits | None = None,
    ) -> None:
        self.infos = infos
        self.positions = positions
        self.slots = slots
        self.size = size
        self.sharding = sharding
        self.backend = backend or make_backend(infos, slots, sharding, units=units)
        self.folds = False
        self.may_write_early = False

    # -- the step --------------------------------------------------------------------------------
    def load(
        self, grads: list[Tensor], *, folds: bool = False, may_write_early: bool = False
    ) -> None:
        """Take the N gradients of a step; for a sharded parameter, the local shard."""
        self.folds = folds
        self.may_write_early = may_write_early
        self.backend.load(grads, may_write_early)

    def release(self) -> None:
        """Drop the references to the gradients, so that ``zero_grad`` frees their memory."""
        self.backend.load([], False)

    def over(self, tensors: list[Tensor]) -> GradView:
        """A view of N other tensors in place of the gradients; its norms are bit-exact."""
        backend = make_backend(self.infos, self.slots, self.sharding, exact=True)
        backend.load(tensors, False)
        return GradView(
            self.infos, self.positions, self.slots, self.size, self.sharding, backend=backend
        )

    @property
    def grads(self) -> list[Tensor]:
        """The N gradients; for a sharded parameter, the local shard."""
        return self.backend.grads

    @property
    def params(self) -> list[Tensor]:
        """The N parameters; for a sharded one, the local shard."""
        return self.backend.params

    def norms(self, p: float = 2.0, exact: bool = False) -> Tensor:
        """The p-norm of each whole gradient, (N,); see :meth:`Backend.norms`."""
        return self.backend.norms(p, exact)

    def sum(self, values: Tensor) -> Tensor:
        """Convert sums (N, ...) over the local shards to sums over the whole tensors."""
        return values if self.sharding is None else self.sharding.sum(values)

    # -- what stays ------------------------------------------------------------------------------
    @property
    def is_whole(self) -> bool:
        """Whether every parameter of the route has a gradient."""
        return len(self.slots) == self.size

    @cached_property
    def elements(self) -> int:
        """Number of elements of the N whole parameters."""
        whole = self.sharding.shapes if self.sharding is not None else {}
        shapes = [
            whole.get(slot, info.param.shape)
            for slot, info in zip(self.slots, self.infos, strict=True)
        ]
        return sum(map(math.prod, shapes))

    @cached_property
    def layouts(self) -> list[UnitLayout]:
        """Unit layouts of the N parameters."""
        return self.backend.layouts

    @cached_property
    def index(self) -> Tensor:
        """``slots`` as an int64 tensor (N,) on the device of the first parameter."""
        return torch.tensor(self.slots, device=self.infos[0].param.device)

    @cached_property
    def slot_array(self) -> Any:
        """``slots`` as an int64 array (N,)."""
        return np.array(self.slots)

    @cached_property
    def numels(self) -> Tensor:
        """Number of elements of each whole tensor, (N,) float64, on the device of the gradients."""
        sizes = torch.tensor([grad.numel() for grad in self.grads], dtype=torch.float64)
        return self.sum(sizes.to(self.grads[0].device))
