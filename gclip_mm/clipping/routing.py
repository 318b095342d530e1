"""Routes: which rule governs which parameter, by name or by the class of its module."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from .base import Clipper
from .norms import tensor_norms
from .registry import ClipConfigError
from .sharding import FlatShard, Sharding, find_sharding, to_local
from .units import UnitLayout, unit_layout

#: Name parts that wrappers (DDP, FSDP, torch.compile, activation checkpointing) put into names.
_WRAPPER_PARTS = {'_fsdp_wrapped_module', '_orig_mod', '_checkpoint_wrapped_module'}


class ParamInfo(NamedTuple):
    """A parameter of the optimizer and where it lives in the model.

    Attributes:
        param: the parameter.
        name: dotted name in the model, without the parts that wrappers add; ``param_{i}``, counted
            over the optimizer's groups, where no model is known.
        module: the module that owns it, or None.
        attribute: its name within that module.
    """

    param: Tensor
    name: str
    module: nn.Module | None
    attribute: str

    @property
    def layout(self) -> UnitLayout:
        return unit_layout(self.param, self.module, self.attribute)


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside DataParallel and DistributedDataParallel wrappers."""
    parallel = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while isinstance(model, parallel):
        model = model.module
    return model


def describe_params(params: Iterable[Tensor], model: nn.Module | None) -> list[ParamInfo]:
    """Names and owners of the optimizer's parameters, in the optimizer's order."""
    owners: dict[int, tuple[str, nn.Module, str]] = {}
    if model is not None:
        modules = dict(unwrap(model).named_modules())
        for path, module in modules.items():
            parts = [part for part in path.split('.') if part and part not in _WRAPPER_PARTS]
            owner, weight = module, None
            if isinstance(module, ParametrizationList):
                # What it holds is laid out as the parameter of the module that it stands in for.
                outer, _, weight = path.rpartition('.')
                owner = modules[outer.rpartition('parametrizations')[0].rstrip('.')]
            for attribute, param in module.named_parameters(recurse=False):
                name = '.'.join([*parts, attribute])
                owners.setdefault(id(param), (name, owner, weight or attribute))
    return [
        ParamInfo(p, *owners.get(id(p), (f'param_{i}', None, ''))) for i, p in enumerate(params)
    ]


class Selector:
    """One condition on a parameter: a regex searched in its name, or the class of its module.

    Args:
        match: regular expression, searched anywhere in the parameter's name.
        module: class name of the owning module, or of one of its base classes.
        where: how the condition is called in an error message.
    """

    def __init__(self, match: str | None, module: str | None, where: str) -> None:
        if (match is None) == (module is None):
            raise ClipConfigError(f"{where}: give either 'match' or 'module'")
        if not isinstance(match if module is None else module, str):
            raise ClipConfigError(f'{where}: expected a string, got {match or module!r}')
        try:
            self._regex = None if match is None else re.compile(match)
        except re.error as error:
            raise ClipConfigError(f'{where}: {match!r} is no regular expression: {error}') from None
        self.match = match
        self.module = module
        self.where = where

    def __call__(self, info: ParamInfo) -> bool:
        if self._regex is not None:
            return self._regex.search(info.name) is not None
        return any(cls.__name__ == self.module for cls in type(info.module).__mro__)

    def nothing_matched(self, infos: list[ParamInfo]) -> ClipConfigError:
        """The error for a condition that no parameter fulfils, with the nearest names."""
        if self._regex is not None:
            word, kind = self.match, 'name'
            valid = {info.name for info in infos}
            valid |= {info.name.rpartition('.')[0] for info in infos}
        else:
            word, kind = self.module, 'module class'
            valid = {type(info.module).__name__ for info in infos if info.module is not None}
        plain = re.sub(r'[\^$\\*+?()|\[\]{}]', '', word)
        near = difflib.get_close_matches(plain, sorted(valid - {''}), n=3, cutoff=0.3)
        hint = near or sorted(valid - {''})[:3]
        return ClipConfigError(
            f'{self.where}: {word!r} matches no parameter by {kind}. '
            f'Nearest: {", ".join(map(repr, hint))}'
        )


class Route(NamedTuple):
    """A rule and the condition under which it governs; ``clipper`` None exempts from clipping."""

    selector: Selector | None
    clipper: Clipper | None
    label: str


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
            exact: as :func:`~gclip_mm.clipping.norms.tensor_norms` has it: to torch's bits.
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


class Router:
    """Assigns every parameter to the first route that matches; the last route takes the rest."""

    def __init__(self, routes: list[Route]) -> None:
        self.routes = routes

    @property
    def needs_names(self) -> bool:
        """Whether a model has to be known before the first step."""
        return any(route.selector is not None for route in self.routes)

    def assign(self, infos: list[ParamInfo], must_match: bool = True) -> list[int]:
        """The route of each parameter, as indices into ``routes``.

        Args:
            infos: the parameters.
            must_match: whether every condition has to match something.

        Raises:
            ClipConfigError: a condition that no parameter fulfils.
        """
        assigned = []
        hits = [0] * len(self.routes)
        for info in infos:
            chosen = None
            for k, route in enumerate(self.routes):
                if route.selector is None or route.selector(info):
                    hits[k] += 1
                    if chosen is None:
                        chosen = k
            assigned.append(chosen)
        for route, count in zip(self.routes, hits, strict=True):
            if must_match and route.selector is not None and not count:
                raise route.selector.nothing_matched(infos)
        return assigned

    def views(
        self,
        infos: list[ParamInfo],
        assigned: list[int],
        missing: set[int],
        flat_groups: dict[int, FlatShard] | None = None,
    ) -> list[GradView]:
        """A view for every route that has gradients.

        Args:
            infos: all parameters.
            assigned: the route of each.
            missing: the places of those that have no gradient.
            flat_groups: where FSDP1 shards parameters, by their ``id``.
        """
        views = []
        for k, route in enumerate(self.routes):
            members = [i for i, chosen in enumerate(assigned) if chosen == k]
            live = [(slot, i) for slot, i in enumerate(members) if i not in missing]
            if live:
                slots, positions = zip(*live, strict=True)
                params = [infos[i].param for i in members]
                sharding = find_sharding(params, list(slots), flat_groups or {})
                if sharding is not None and route.clipper is not None:
                    _check_layout(route.clipper, sharding)
                views.append(
                    GradView(
                        route,
                        [infos[i] for i in positions],
                        list(positions),
                        list(slots),
                        len(members),
                        sharding,
                    )
                )
        return views


def _check_layout(clipper: Clipper, sharding: Sharding) -> None:
    """Refuse a state that could not be saved in a form that another run can read."""
    flat = any(spec is not None and None in spec.dims for spec in sharding.specs)
    if flat and clipper.elementwise_state:
        raise ClipConfigError(
            f'clip_grad: {type(clipper).__name__} keeps a number for each weight, and FSDP1 lays '
            'the weights out flat, so that a checkpoint of it would fit no other run. Shard with '
            'FSDP2 (torch.distributed.fsdp.fully_shard)'
        )
