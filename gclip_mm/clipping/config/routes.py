"""Routes: which rule clips which parameter, by name or by the class of its module."""

from __future__ import annotations

import difflib
import re
from typing import NamedTuple

from ..base import Clipper
from ..checks import ClipConfigError
from ..gradients.names import ParamInfo


class Selector:
    """One condition on a parameter: a regex searched in its name, or the class of its module.

    A parameter that several modules share has several names; one that fits is enough.

    Args:
        match: regular expression, searched anywhere in the parameter's name.
        module: class name of the owning module, or of one of its base classes.
        where: the condition's place in the config, for error messages.

    Raises:
        ClipConfigError: not exactly one condition, or an invalid regular expression.
    """

    def __init__(self, match: str | None, module: str | None, where: str) -> None:
        if (match is None) == (module is None):
            raise ClipConfigError(f"{where}: give either 'match' or 'module'")
        if not isinstance(match if module is None else module, str):
            raise ClipConfigError(f'{where}: expected a string, got {match or module!r}')
        try:
            self._regex = None if match is None else re.compile(match)
        except re.error as error:
            raise ClipConfigError(
                f'{where}: {match!r} is not a regular expression: {error}'
            ) from None
        self.match = match
        self.module = module
        self.where = where

    def __call__(self, info: ParamInfo) -> bool:
        if self._regex is not None:
            return any(map(self._regex.search, info.names))
        return any(
            cls.__name__ == self.module for owner in info.modules for cls in type(owner).__mro__
        )

    def nothing_matched(self, infos: list[ParamInfo]) -> ClipConfigError:
        """The error for a condition that matches no parameter, with the nearest names."""
        if self._regex is not None:
            word, kind = self.match, 'name'
            valid = {name for info in infos for name in info.names}
            valid |= {name.rpartition('.')[0] for name in valid}
        else:
            word, kind = self.module, 'module class'
            valid = {type(info.module).__name__ for info in infos if info.module is not None}
        plain = re.sub(r'[\^$\\*+?()|\[\]{}]', '', word or '')
        near = difflib.get_close_matches(plain, sorted(valid - {''}), n=3, cutoff=0.3)
        hint = near or sorted(valid - {''})[:3]
        return ClipConfigError(
            f'{self.where}: {word!r} matches no parameter by {kind}. '
            f'Nearest: {", ".join(map(repr, hint))}'
        )


class Route(NamedTuple):
    """A rule and the condition that selects its parameters.

    Attributes:
        selector: the condition; None matches every parameter.
        clipper: the rule; None: the parameters are not clipped.
        label: name of the route in messages.
    """

    selector: Selector | None
    clipper: Clipper | None
    label: str


class Router:
    """Assigns every parameter to the first matching route; the last route takes the rest."""

    def __init__(self, routes: list[Route]) -> None:
        self.routes = routes

    @property
    def needs_names(self) -> bool:
        """Whether any route needs the names and modules of a model."""
        return any(route.selector is not None for route in self.routes)

    def assign(self, infos: list[ParamInfo], must_match: bool = True) -> list[int]:
        """The route of each parameter, as indices into ``routes``.

        Args:
            infos: the parameters.
            must_match: whether every condition has to match a parameter.

        Raises:
            ClipConfigError: a condition matches no parameter.
        """
        assigned: list[int] = []
        hits = [0] * len(self.routes)
        for info in infos:
            chosen: int | None = None
            for k, route in enumerate(self.routes):
                if route.selector is None or route.selector(info):
                    hits[k] += 1
                    if chosen is None:
                        chosen = k
            assert chosen is not None  # the last route has no condition
            assigned.append(chosen)
        for route, count in zip(self.routes, hits, strict=True):
            if must_match and route.selector is not None and not count:
                raise route.selector.nothing_matched(infos)
        return assigned
