"""The parameters of an optimizer: named by a model, and grouped into views by route."""

from __future__ import annotations

import re
from operator import attrgetter, is_
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..base import Clipper, Measure
from ..checks import ClipConfigError
from ..config.routes import Route, Router
from ..gradients.kernel_backend import RouteUnits
from ..gradients.names import ParamInfo, describe_params
from ..gradients.norms import combine
from ..gradients.sharding import (
    FlatShard,
    Sharding,
    find_sharding,
    flat_param_groups,
    is_dtensor,
    to_local,
)
from ..gradients.view import GradView

#: Number of sets of missing gradients whose views are cached.
_MAX_PLANS = 16
_DENSE = {torch.strided}
_layout_of = attrgetter('layout')


class RoutedView(NamedTuple):
    """A route, and the gradients that it governs in a step.

    Attributes:
        route: the route; its ``clipper`` is None for exempt parameters.
        view: the gradients.
    """

    route: Route
    view: GradView

    @property
    def clipper(self) -> Clipper | None:
        """The rule of the route; None: exempt from clipping."""
        return self.route.clipper

    @property
    def is_global(self) -> bool:
        """Whether all gradients of the view get one coefficient."""
        return self.clipper is not None and self.clipper.is_global

    @property
    def norm_type(self) -> float:
        """Order of the norm that the rule reports."""
        return 2.0 if self.clipper is None else self.clipper.norm_type

    def measure(self) -> Measure:
        """What the rule reads; for exempt parameters, their norm."""
        if self.clipper is None:
            return Measure(combine(self.view.backend.norms(kernels=False)))
        return self.clipper.measure(self.view)


class ParameterBook:
    """Knows the parameters of an optimizer, and collects their gradients in every step.

    The parameters are looked up again when the parameter groups change or another model is bound.
    The views are cached for each set of missing gradients.

    Attributes:
        params: all parameters of the optimizer, in its order.
        infos: name and module of each.
        assigned: the route of each, as indices into ``router.routes``.
        has_dtensors: whether any of them is a DTensor.
    """

    def __init__(self, optimizer: Optimizer, router: Router) -> None:
        self.params: list[Tensor] = []
        self.infos: list[ParamInfo] = []
        self.assigned: list[int] = []
        self.has_dtensors = self._has_complex = False
        self._optimizer = optimizer
        self._router = router
        self._model: nn.Module | None = None
        self._flat_groups: dict[int, FlatShard] = {}
        self._plans: dict[Any, list[RoutedView]] = {}
        # By index of the route: the indices of its parameters, and their units.
        self._routed: dict[int, list[int]] = {}
        self._units: dict[int, RouteUnits] = {}

    @property
    def is_bound(self) -> bool:
        """Whether a model has given the parameters their names."""
        return self._model is not None

    @property
    def model(self) -> nn.Module | None:
        """The model that has given the parameters their names, or None."""
        return self._model

    def bind(self, model: nn.Module) -> None:
        """Take names and modules from the model.

        Raises:
            ClipConfigError: a route that matches no parameter.
        """
        # Patterns were already validated for this model.
        is_known = model is self._model and bool(self.assigned)
        self._model = model
        self.refresh(is_change=is_known)

    def refresh(self, is_change: bool = False) -> None:
        """Look up the parameters again. The state of the rules follows those that stay.

        Args:
            is_change: whether the optimizer's groups have changed during training, so that a
                pattern that matched may match no parameter any more.

        Raises:
            ClipConfigError: a pattern that matches no parameter.
        """
        params = self._current()
        infos = describe_params(params, self._model)
        if self.is_bound or not self._router.needs_names:
            assigned = self._router.assign(infos, must_match=not is_change)
            self._move_state(params, assigned)
            self.assigned = assigned
        self.params, self.infos = params, infos
        self.has_dtensors = any(map(is_dtensor, params))
        self._has_complex = any(map(Tensor.is_complex, params))
        self._flat_groups = flat_param_groups(self._model)
        self._plans.clear()
        self._routed.clear()
        self._units.clear()

    def _current(self) -> list[Tensor]:
        return [p for group in self._optimizer.param_groups for p in group['params']]

    def _move_state(self, params: list[Tensor], assigned: list[int]) -> None:
        before, now = _members(self.params, self.assigned), _members(params, assigned)
        for k, route in enumerate(self._router.routes):
            was, here = before.get(k, []), now.get(k, [])
            if route.clipper is None or (len(was) == len(here) and all(map(is_, was, here))):
                continue
            slots = {id(param): slot for slot, param in enumerate(was)}
            route.clipper.follow([slots.get(id(param)) for param in here])

    def whole_shape(self, param: Tensor) -> list[int]:
        """The shape of a parameter before sharding."""
        flat = self._flat_groups.get(id(param))
        return list(param.shape if flat is None else flat.shape)

    def sync(self) -> None:
        """Look up the parameters again if the optimizer's groups have changed."""
        params = self._current()
        if len(params) != len(self.params) or not all(map(is_, params, self.params)):
            self.refresh(is_change=True)

    def collect(self) -> tuple[list[RoutedView], list[list[Tensor]], list[Tensor]]:
        """The views of this step, the gradients of each, and all gradients.

        The views do not hold the gradients yet (:meth:`GradView.load`). Sparse and complex
        gradients of exempt parameters are replaced by what their norm is made of: the values of a
        sparse one, the real and imaginary parts of a complex one.

        Raises:
            ClipConfigError: a kind of gradient that no rule supports, or routes without a model.
        """
        grads = self._gradients()
        missing = tuple(i for i, grad in enumerate(grads) if grad is None)
        everything = [grad for grad in grads if grad is not None]
        if not everything:
            return [], [], []
        # Checked in every step: a gradient may be sparse in one step and dense in another.
        if self._has_complex or not _DENSE.issuperset(map(_layout_of, everything)):
            grads = self._dense_and_real(grads)
            everything = [grad for grad in grads if grad is not None]
        # Device and dtype are part of the key: a model may be moved after the first step.
        key = (missing, everything[0].device, everything[0].dtype)
        views = self._plans.pop(key, None)
        if views is None:
            views = self._plan(key)
        # At the end: the first key is that of the views unused for the longest time.
        self._plans[key] = views
        if len(views) == 1:
            return views, [everything], everything
        return views, [[grads[i] for i in view.positions] for _, view in views], everything  # type: ignore[misc]

    def _gradients(self) -> list[Tensor | None]:
        grads = [p.grad for p in self.params]
        if self._flat_groups:
            # FSDP1 gives no gradient to a rank that holds nothing of the parameter, while the other
            # ranks wait for its part of the norm.
            grads = [
                p.new_empty(0) if grad is None and not p.numel() else grad
                for p, grad in zip(self.params, grads, strict=True)
            ]
        if self.has_dtensors:
            return [None if grad is None else to_local(grad) for grad in grads]
        return grads

    def _dense_and_real(self, grads: list[Tensor | None]) -> list[Tensor | None]:
        """The gradients, with stand-ins for the sparse and complex ones of exempt parameters.

        Raises:
            ClipConfigError: the gradient of a parameter that is to be clipped is sparse or complex.
        """
        self._check_names()
        routes = self._router.routes
        return [
            None if grad is None else _dense_and_real(info, grad, routes[k].clipper is None)
            for info, grad, k in zip(self.infos, grads, self.assigned, strict=True)
        ]

    def _check_names(self) -> None:
        if self._router.needs_names and not self.is_bound:
            raise ClipConfigError(
                'clip_grad: exclude and rules select parameters by name: pass the model '
                '(attach(optimizer, clip_grad, model=model))'
            )

    def _plan(self, key: Any) -> list[RoutedView]:
        self._check_names()
        if len(self._plans) >= _MAX_PLANS:
            # The one that was not used for the longest time.
            del self._plans[next(iter(self._plans))]
        return self._views(set(key[0]))

    def _views(self, missing: set[int]) -> list[RoutedView]:
        """A view for every route that has gradients.

        Args:
            missing: the places of the parameters that have no gradient.
        """
        views = []
        for k, route in enumerate(self._router.routes):
            members = self._members(k)
            slots = [slot for slot, i in enumerate(members) if i not in missing]
            if not slots:
                continue
            positions = [members[slot] for slot in slots]
            sharding = None
            if self.has_dtensors or self._flat_groups:
                params = [self.infos[i].param for i in members]
                sharding = find_sharding(params, slots, self._flat_groups)
            if sharding is not None and route.clipper is not None:
                _check_layout(route.clipper, sharding)
            infos = [self.infos[i] for i in positions]
            size, units = len(members), self._units[k]
            view = GradView(infos, positions, slots, size, sharding, units=units)
            views.append(RoutedView(route, view))
        return views

    def _members(self, k: int) -> list[int]:
        """The indices of the parameters of a route."""
        if k not in self._routed:
            members = [i for i, chosen in enumerate(self.assigned) if chosen == k]
            self._routed[k] = members
            self._units[k] = RouteUnits([self.infos[i] for i in members])
        return self._routed[k]


def _members(params: list[Tensor], assigned: list[int]) -> dict[int, list[Tensor]]:
    """The parameters of each route, in the order of their slots."""
    members: dict[int, list[Tensor]] = {}
    # No parameter has a route as long as names are needed and not known.
    for param, route in zip(params, assigned, strict=False):
        members.setdefault(route, []).append(param)
    return members


def _dense_and_real(info: ParamInfo, grad: Tensor, is_exempt: bool) -> Tensor:
    """The gradient, or what stands for it where it is sparse or complex and exempt.

    Raises:
        ClipConfigError: it is sparse or complex, and not exempt.
    """
    is_sparse = grad.layout is not torch.strided
    if not is_sparse and not grad.is_complex():
        return grad
    if not is_exempt:
        what = 'sparse' if is_sparse else 'complex'
        remedy = 'build the embedding with sparse=False, or exempt it' if is_sparse else 'exempt it'
        raise ClipConfigError(
            f'clip_grad: the gradient of {info.name} is {what}, which no rule supports: {remedy} '
            f"(exclude=[r'^{re.escape(info.name)}$'])"
        )
    if is_sparse:
        grad = _sparse_values(info.param, grad)
    return torch.view_as_real(grad.resolve_conj()) if grad.is_complex() else grad


def _sparse_values(param: Tensor, grad: Tensor) -> Tensor:
    """The values of a sparse gradient, each element once."""
    if grad.layout is not torch.sparse_coo:
        return grad.detach().values()
    if not grad.is_coalesced():
        grad = grad.coalesce()
        if not torch.isfinite(grad._values()).all():
            # nonfinite='zero' writes into the values.
            param.grad = grad
    return grad._values()


def _check_layout(clipper: Clipper, sharding: Sharding) -> None:
    """Refuse a state that could not be saved in a form that another run can read."""
    flat = any(spec is not None and None in spec.dims for spec in sharding.specs)
    if flat and clipper.elementwise_state:
        raise ClipConfigError(
            f'clip_grad: {clipper.name} keeps a number for each weight, and FSDP1 lays the weights '
            'out flat, so that a checkpoint of it would fit no other run. Shard with FSDP2 '
            '(torch.distributed.fsdp.fully_shard)'
        )
