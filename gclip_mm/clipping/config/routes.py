"""Routes: which rule governs which parameter, by name or by the class of its module."""

from __future__ import annotations

import difflib
import re
from typing import NamedTuple

from ..base import Clipper
from ..checks import ClipConfigError
from ..gradients.names import ParamInfo
from ..gradients.sharding import FlatShard, Sharding, find_sharding
from ..gradients.view import GradView


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
