"""Checks of config values; each error names the key, the value and the valid values."""

from __future__ import annotations

import difflib
import math
from typing import Any

from torch import Tensor

from .host import np


class ClipConfigError(ValueError, AssertionError):
    """An invalid ``clip_grad`` config.

    It is a ``ValueError``. It is an ``AssertionError`` as well, because stock MMEngine raises one
    for a malformed ``clip_grad``: code that catches the stock error keeps working.
    """


def suggest(word: str, valid: list[str]) -> str:
    """``" Did you mean 'x'?"`` for the nearest valid word, or an empty string."""
    near = difflib.get_close_matches(str(word), valid, n=1, cutoff=0.6)
    return f' Did you mean {near[0]!r}?' if near else ''


def plain(value: Any) -> Any:
    """NumPy scalars and 0-d arrays as Python numbers; anything else as it is."""
    if np is not None and (
        isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0)
    ):
        return value.item()
    return value


def _refuse_tensor(where: str, key: str, value: object) -> None:
    """Say how to make a number of a tensor: a rule would keep it on its device and in its state."""
    if isinstance(value, Tensor):
        raise ClipConfigError(
            f'{where}: {key} must be a Python number, got a tensor of shape {tuple(value.shape)}: '
            f'give {key}=tensor.item()'
        )


def check_number(
    key: str,
    value: object,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    open_low: bool = False,
    open_high: bool = False,
    allow_none: bool = False,
    allow_inf: bool = False,
    integer: bool = False,
    where: str = 'clip_grad',
) -> None:
    """Raise :class:`ClipConfigError` unless ``value`` is a finite number in the given range.

    Args:
        key: name of the key, for the message.
        value: the value from the config; NumPy scalars are numbers.
        low: smallest valid value; with ``open_low`` the value must be greater.
        high: largest valid value; with ``open_high`` the value must be less.
        open_low: exclude ``low`` itself.
        open_high: exclude ``high`` itself.
        allow_none: accept None.
        allow_inf: accept infinity, for an upper bound that then clips nothing.
        integer: require an ``int``.
        where: the part of the config that the key belongs to; begins the message.
    """
    if value is None and allow_none:
        return
    value = plain(value)
    _refuse_tensor(where, key, value)
    number_type = int if integer else int | float
    if not isinstance(value, number_type) or isinstance(value, bool):
        kind = 'a whole number' if integer else 'a number'
        raise ClipConfigError(f'{where}: {key} must be {kind}, got {value!r}')
    inside = (value > low if open_low else value >= low) and (
        value < high if open_high else value <= high
    )
    fits = not math.isnan(value) if allow_inf else math.isfinite(value)
    if not fits or not inside:
        left = '' if low == -math.inf else f'{"greater than" if open_low else "at least"} {low:g}'
        right = '' if high == math.inf else f'{"less than" if open_high else "at most"} {high:g}'
        number = 'a number' if allow_inf else 'a finite number'
        wanted = ' and '.join(part for part in (number, left, right) if part)
        raise ClipConfigError(f'{where}: {key} must be {wanted}, got {value!r}')


def check_norm_type(key: str, value: object) -> float:
    """The order p of a p-norm as a float; ``'inf'`` is read as infinity.

    Raises:
        ClipConfigError: not a number greater than 0 and not ``'inf'``.
    """
    value = plain(value)
    _refuse_tensor('clip_grad', key, value)
    if isinstance(value, str) and value.lower() in ('inf', '+inf', 'infinity'):
        return math.inf
    if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
        raise ClipConfigError(
            f"clip_grad: {key} must be a number greater than 0, or 'inf', got {value!r}"
        )
    return float(value)


def check_choice(key: str, value: object, valid: tuple[object, ...]) -> None:
    """Raise :class:`ClipConfigError` unless ``value`` is one of ``valid``."""
    _refuse_tensor('clip_grad', key, value)
    if plain(value) not in valid:
        raise ClipConfigError(
            f'clip_grad: {key} must be one of {", ".join(map(repr, valid))}, got {value!r}'
        )


def check_flag(key: str, value: object) -> None:
    """Raise :class:`ClipConfigError` unless ``value`` is True or False."""
    _refuse_tensor('clip_grad', key, value)
    if not isinstance(plain(value), bool):
        raise ClipConfigError(f'clip_grad: {key} must be True or False, got {value!r}')
