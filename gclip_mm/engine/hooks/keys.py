"""Turns a misspelt key of a hook's config into an error that names the valid keys."""

from __future__ import annotations

import functools
import inspect
from typing import Any, TypeVar

from ...clipping.checks import ClipConfigError, suggest

_Class = TypeVar('_Class', bound=type)


def reject_unknown_keys(cls: _Class) -> _Class:
    """Class decorator: the constructor raises a ``ClipConfigError`` for a key it does not have.

    Without it Python raises a ``TypeError`` that names neither the valid keys nor the nearest one.

    Example:
        >>> @HOOKS.register_module()
        ... @reject_unknown_keys
        ... class MyHook(Hook):
        ...     def __init__(self, interval: int = 50) -> None: ...
        >>> MyHook(intervall=10)
        ClipConfigError: MyHook has no key 'intervall'. Did you mean 'interval'? Valid keys: ...
    """
    construct = cls.__init__  # type: ignore[misc]
    valid = valid_keys(cls)

    @functools.wraps(construct)
    def checked(self: Any, *args: Any, **kwargs: Any) -> None:
        for key in kwargs:
            if key not in valid:
                raise unknown_key(cls.__name__, key, valid)
        construct(self, *args, **kwargs)

    cls.__init__ = checked  # type: ignore[misc]
    return cls


def unknown_key(hook: str, key: str, valid: list[str]) -> ClipConfigError:
    """The error for a key that a hook does not have."""
    listed = f'Valid keys: {", ".join(valid)}' if valid else 'It takes no keys'
    return ClipConfigError(f'{hook} has no key {key!r}.{suggest(key, valid)} {listed}')


def valid_keys(cls: type) -> list[str]:
    """The keyword arguments of a class, with those of the bases that get its ``**kwargs``."""
    keys: list[str] = []
    for base in cls.__mro__[:-1]:
        if '__init__' not in vars(base):
            continue
        parameters = list(inspect.signature(base.__init__).parameters.values())[1:]  # type: ignore[misc]
        keys += [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return list(dict.fromkeys(keys))
