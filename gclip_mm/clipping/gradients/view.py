"""What a rule sees of a step: the gradients that one route governs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .names import ParamInfo
from .norms import tensor_norms
from .sharding import Sharding, to_local
from .units import UnitLayout

if TYPE_CHECKING:
    from ..config.routes import Route


class GradView:
    """The gradients that one route governs in one step.

    Attributes:
        route: the route.
        infos: the parameters of the route whose gradient is there, N of them.
        grads: N gradients; the engine sets them anew in each step. Of a sharded parameter, this
            rank's part.
        sharding: how the parameters are spread over processes; None: each rank has all of each.
        positions: their places among all parameters of the optimizer.
        slots: their places among all parameters of the route: what per-parameter state is indexed
            by, since a gradient may be missing in some steps.
        size: how many parameters the route has in all.
        folds: whether, in this step, a coefficient for all of them goes into the optimizer's own
            kernel, so that nobody sees clipped gradients to compare with another's.
        is_disposable: whether, in this step, the gradients are of no use to anybody if they turn
            out not to be finite, so that a rule may clip while it measures.
        cache: whatever the rule wants to keep for as long as the same gradients are present.
    """

    def __init__(
        self,
        route: Route,
        infos: list[ParamInfo],
        positions: list[int],
        slots: list[int],
        size: int,
        sharding: Sharding | None = None,
    ) -> None:
        self.route = route
        self.infos = infos
        self.sharding = sharding
        self._params = [info.param for info in infos]
        self.grads: list[Tensor] = []
        self.positions = positions
        self.slots = slots
        self.size = size
        self.folds = False
        self.is_disposable = False
        self.cache: dict[str, Any] = {}

    @property
    def params(self) -> list[Tensor]:
        """The N parameters; of a sharded one, this rank's part."""
        # Asked for anew: the memory behind a sharded parameter may be exchanged between steps.
        return self._params if self.sharding is None else [to_local(p) for p in self._params]

    def norms(self, p: float = 2.0, exact: bool = False) -> Tensor:
        """The p-norm of each whole gradient, (N,), over all processes that hold parts of it.

        Args:
            p: order of the norm, greater than 0, or ``math.inf``.
            exact: as :func:`~gclip_mm.clipping.gradients.norms.tensor_norms` has it: to torch's bits.
        """
        parts = tensor_norms(self.grads, p, exact)
        return parts if self.sharding is None else self.sharding.norms(parts, p)

    def sum(self, values: Tensor) -> Tensor:
        """Sums (N, ...) over this rank's parts -> sums over the whole tensors."""
        return values if self.sharding is None else self.sharding.sum(values)

    @property
    def elements(self) -> int:
        """How many weights the N parameters have in all, over all processes; counted once."""
        if 'elements' not in self.cache:
            specs = [None] * self.size if self.sharding is None else self.sharding.specs
            shapes = [
                param.shape if specs[slot] is None else specs[slot].shape
                for slot, param in zip(self.slots, self._params, strict=True)
            ]
            self.cache['elements'] = sum(map(math.prod, shapes))
        return self.cache['elements']

    @property
    def layouts(self) -> list[UnitLayout]:
        """Unit layouts of the parameters, found once."""
        if 'layouts' not in self.cache:
            self.cache['layouts'] = [info.layout for info in self.infos]
        return self.cache['layouts']

    @property
    def index(self) -> Tensor:
        """``slots`` as an int64 tensor (N,) on the first parameter's device, made once."""
        if 'index' not in self.cache:
            self.cache['index'] = torch.tensor(self.slots, device=self._params[0].device)
        return self.cache['index']

    @property
    def is_whole(self) -> bool:
        """Whether every parameter of the route has a gradient in this step."""
        return len(self.slots) == self.size
