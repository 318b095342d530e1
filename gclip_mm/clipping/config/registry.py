"""The registry of clipping rules: maps names in a config to classes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from ..base import Clipper
from ..checks import ClipConfigError, suggest

_Rule = TypeVar('_Rule', bound=type[Clipper])


class ClipperRegistry:
    """Maps rule names and their aliases to :class:`~gclip_mm.clipping.base.Clipper` classes.

    The registry does not depend on MMEngine, because the rules run without MMEngine.

    Example:
        >>> @CLIPPERS.register_module(aliases=('mine',))
        ... class MyClip(NormClip):
        ...     '''A custom rule, for ``clip_grad=dict(type='mine', max_norm=1)``.'''
    """

    def __init__(self) -> None:
        self._classes: dict[str, type[Clipper]] = {}
        self._aliases: dict[str, str] = {}

    def register_module(
        self, *, name: str | None = None, aliases: tuple[str, ...] = (), force: bool = False
    ) -> Callable[[_Rule], _Rule]:
        """Class decorator that registers a rule.

        Args:
            name: name in configs; None: the name of the class.
            aliases: short names.
            force: replace a rule that is registered under one of the names.

        Raises:
            KeyError: a name is already registered.
            TypeError: the aliases are one string, or the class is not a rule.
        """
        if isinstance(aliases, str):
            raise TypeError(f'aliases must be a tuple of names such as ({aliases!r},)')

        def decorate(cls: _Rule) -> _Rule:
            if not (isinstance(cls, type) and issubclass(cls, Clipper)):
                raise TypeError(f'{cls!r} is not a clipping rule: it does not subclass Clipper')
            key = name or cls.__name__
            for word in (key, *aliases):
                if not force and (word in self._classes or word in self._aliases):
                    raise KeyError(f'the clipping rule {word!r} is already registered')
            self._classes[key] = cls
            self._aliases.update(dict.fromkeys(aliases, key))
            return cls

        return decorate

    def get(self, name: str) -> type[Clipper]:
        """The class that is registered under a name or an alias.

        Raises:
            ClipConfigError: nothing is registered under that name.
        """
        key = self._aliases.get(name, name) if isinstance(name, str) else name
        if not isinstance(key, str) or key not in self._classes:
            valid = sorted([*self._classes, *self._aliases])
            raise ClipConfigError(
                f'clip_grad: unknown type {name!r}.{suggest(name, valid)} '
                f'Valid types: {", ".join(valid)}'
            )
        return self._classes[key]

    def aliases(self, name: str) -> tuple[str, ...]:
        """The short names of a registered rule."""
        return tuple(alias for alias, key in self._aliases.items() if key == name)

    def keys_of(self, name: str) -> list[str]:
        """The config keys that a rule takes, in the order of its constructor."""
        return list(inspect.signature(self.get(name)).parameters)

    def build(self, name: str, kwargs: dict[str, Any], where: str = 'clip_grad') -> Clipper:
        """Construct a rule.

        Args:
            name: name or alias of the rule.
            kwargs: config keys of the rule.
            where: the part of the config; begins an error message.

        Raises:
            ClipConfigError: an unknown or missing key, or an invalid value.
        """
        cls = self.get(name)
        parameters = inspect.signature(cls).parameters
        for key in kwargs:
            if key not in parameters:
                raise ClipConfigError(
                    f'{where}: {cls.__name__} has no key {key!r}.'
                    f'{suggest(key, list(parameters))} Valid keys: {", ".join(parameters)}'
                )
        missing = [
            key for key, p in parameters.items() if p.default is p.empty and key not in kwargs
        ]
        if missing:
            raise ClipConfigError(
                f'{where}: {cls.__name__} needs the key {missing[0]!r}. '
                f'Its keys: {", ".join(parameters)}'
            )
        return cls(**kwargs).assembled()

    def __contains__(self, name: str) -> bool:
        return name in self._classes or name in self._aliases

    def __iter__(self) -> Iterator[str]:
        return iter(self._classes)

    def __len__(self) -> int:
        return len(self._classes)

    def __repr__(self) -> str:
        return f'ClipperRegistry({", ".join(self._classes)})'


CLIPPERS = ClipperRegistry()
