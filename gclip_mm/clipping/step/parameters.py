"""The parameters of an optimizer: found once, named by a model, and grouped into views by route."""

from __future__ import annotations

from operator import is_
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from ..checks import ClipConfigError
from ..config.routes import Router
from ..gradients.names import ParamInfo, describe_params
from ..gradients.sharding import FlatShard, flat_param_groups, is_dtensor, to_local
from ..gradients.view import GradView

#: Sets of missing gradients whose layout is remembered.
_MAX_PLANS = 16


class ParameterBook:
    """Knows the parameters of an optimizer, and collects their gradients in every step.

    What it knows is looked up anew when parameter groups change or another model is bound; the
    layout of the views is kept for each set of missing gradients.

    Attributes:
        params: all parameters of the optimizer, in its order.
        infos: what is known of each.
        assigned: the route of each, as indices into ``router.routes``.
        has_dtensors: whether any of them is a DTensor.
    """

    def __init__(self, optimizer: Optimizer, router: Router) -> None:
        self.params: list[Tensor] = []
        self.infos: list[ParamInfo] = []
        self.assigned: list[int] = []
        self.has_dtensors = False
        self._optimizer = optimizer
        self._router = router
        self._model: nn.Module | None = None
        self._flat_groups: dict[int, FlatShard] = {}
        self._plans: dict[Any, list[GradView]] = {}

    @property
    def is_bound(self) -> bool:
        """Whether a model has given the parameters their names."""
        return self._model is not None

    def bind(self, model: nn.Module) -> None:
        """Take names and modules from the model.

        Raises:
            ClipConfigError: a route that matches no parameter.
        """
        # Of a model that is known already everything has matched before.
        is_known = model is self._model and bool(self.assigned)
        self._model = model
        self.refresh(is_change=is_known)

    def refresh(self, is_change: bool = False) -> None:
        """Find the parameters anew. The state of the rules follows those that stay.

        Args:
            is_change: whether the optimizer's groups have changed while it was training, so that a
                condition that matched may match nothing any more.

        Raises:
            ClipConfigError: a condition that no parameter fulfils.
        """
        params = [p for group in self._optimizer.param_groups for p in group['params']]
        infos = describe_params(params, self._model)
        if self.is_bound or not self._router.needs_names:
            assigned = self._router.assign(infos, must_match=not is_change)
            self._move_state(params, assigned)
            self.assigned = assigned
        self.params, self.infos = params, infos
        self.has_dtensors = any(map(is_dtensor, params))
        self._flat_groups = flat_param_groups(self._model)
        self._plans.clear()

    def _move_state(self, params: list[Tensor], assigned: list[int]) -> None:
        before, now = _members(self.params, self.assigned), _members(params, assigned)
        for k, route in enumerate(self._router.routes):
            was, here = before.get(k, []), now.get(k, [])
            if route.clipper is None or (len(was) == len(here) and all(map(is_, was, here))):
                continue
            slots = {id(param): slot for slot, param in enumerate(was)}
            route.clipper.follow([slots.get(id(param)) for param in here])

    def whole_shape(self, param: Tensor) -> list[int]:
        """The shape of a parameter when no process holds but a part of it."""
        flat = self._flat_groups.get(id(param))
        return list(param.shape if flat is None else flat.shape)

    def sync(self) -> None:
        """Find the parameters anew if the optimizer's groups are others than they were."""
        params = [p for group in self._optimizer.param_groups for p in group['params']]
        if len(params) != len(self.params) or not all(map(is_, params, self.params)):
            self.refresh(is_change=True)

    def collect(self) -> tuple[list[GradView], list[Tensor]]:
        """The views of the gradients that are there, and all those gradients.

        Raises:
            ClipConfigError: a kind of gradient that no rule supports, or routes without a model.
        """
        grads = [p.grad for p in self.params]
        if self._flat_groups:
            # FSDP1 gives no gradient to a rank that holds nothing of the parameter; the others
            # wait for its share of the norm all the same.
            grads = [
                p.new_empty(0) if grad is None and not p.numel() else grad
                for p, grad in zip(self.params, grads, strict=True)
            ]
        missing = tuple(i for i, grad in enumerate(grads) if grad is None)
        if self.has_dtensors:
            grads = [None if grad is None else to_local(grad) for grad in grads]
        everything = [grad for grad in grads if grad is not None] if missing else grads
        if not everything:
            return [], []
        # The device and type are part of the key: a model may be moved after the first step.
        key = (missing, everything[0].device, everything[0].dtype)
        views = self._plans.get(key)
        if views is None:
            views = self._plan(key, grads)
        if len(views) == 1:
            views[0].grads = everything
        else:
            for view in views:
                view.grads = [grads[i] for i in view.positions]
        return views, everything

    def _plan(self, key: Any, grads: list[Tensor | None]) -> list[GradView]:
        for info, grad in zip(self.infos, grads, strict=True):
            if grad is not None:
                _check_supported(info, grad)
        if self._router.needs_names and not self.is_bound:
            raise ClipConfigError(
                'clip_grad: exclude and rules go by the names of parameters: pass the model '
                '(attach(optimizer, clip_grad, model=model))'
            )
        if len(self._plans) >= _MAX_PLANS:
            self._plans.clear()
        self._plans[key] = self._router.views(
            self.infos, self.assigned, set(key[0]), self._flat_groups
        )
        return self._plans[key]


def _members(params: list[Tensor], assigned: list[int]) -> dict[int, list[Tensor]]:
    """The parameters of each route, in the order of their slots."""
    members: dict[int, list[Tensor]] = {}
    # As long as names are needed and not known, none has a route.
    for param, route in zip(params, assigned, strict=False):
        members.setdefault(route, []).append(param)
    return members


def _check_supported(info: ParamInfo, grad: Tensor) -> None:
    if grad.is_sparse:
        raise ClipConfigError(
            f'clip_grad: the gradient of {info.name} is sparse, which no rule supports: build the '
            'embedding with sparse=False'
        )
    if grad.is_complex():
        raise ClipConfigError(f'clip_grad: the gradient of {info.name} is complex: not supported')
