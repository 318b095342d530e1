"""Undoing a step whose closure turned out not to be finite after the step had begun."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class Rollback:
    """What an optimizer changed before, or between, the evaluations of its closure.

    Most optimizers evaluate the closure first, once: nothing has changed when it returns, and there
    is nothing to undo. Some move the parameters before it (SAM, schedule-free optimizers), and some
    evaluate it several times (LBFGS). The first step with a closure is watched: it starts from a
    copy of parameters and state. Later steps copy only where that step showed a need.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._needs_copy = True
        self._is_watched = False
        self._changed_before = False
        self._saved: _Copy | None = None
        #: Whether an evaluation after the first was not finite.
        self.saw_nonfinite = False

    def begin(self) -> None:
        """A step with a closure begins."""
        self._saved = _Copy(self._optimizer) if self._needs_copy else None

    def look(self) -> None:
        """The closure is about to run for the first time."""
        if self._saved is not None:
            self._changed_before = self._saved.differs()

    @property
    def is_poisoned(self) -> bool:
        """Whether a non-finite evaluation has reached the parameters. Waits for the device."""
        if not self.saw_nonfinite or self._saved is None:
            return False
        params = [p for p in self._saved.params if p.numel()]
        return not all(bool(torch.isfinite(p).all()) for p in params)

    def undo(self) -> None:
        """Put parameters, state and settings back to where the step began."""
        if self._saved is not None:
            self._saved.restore()

    def forget(self, evaluations: int) -> None:
        """The step is over; ``evaluations`` of its closure were made."""
        if evaluations:
            if self._saved is not None and not self._is_watched:
                self._is_watched = True
                self._needs_copy = self._changed_before
            self._needs_copy = self._needs_copy or evaluations > 1
        self._saved = None
        self.saw_nonfinite = False


class _Copy:
    """Parameters, state and settings of an optimizer at one moment."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self.params: list[Tensor] = [p for g in optimizer.param_groups for p in g['params']]
        self._values = [p.detach().clone() for p in self.params]
        self._versions = [p._version for p in self.params]
        self._state = {key: _snapshot(value) for key, value in optimizer.state.items()}
        self._groups = [_settings(group) for group in optimizer.param_groups]
        self._tensors = [(t, t._version) for t in _tensors(list(optimizer.state.values()))]

    def differs(self) -> bool:
        """Whether anything has changed since."""
        optimizer = self._optimizer
        return (
            any(p._version != v for p, v in zip(self.params, self._versions, strict=True))
            or any(tensor._version != version for tensor, version in self._tensors)
            or set(optimizer.state) != set(self._state)
            or any(not _same(optimizer.state[key], value) for key, value in self._state.items())
            or any(
                not _same(_settings(group), saved)
                for group, saved in zip(optimizer.param_groups, self._groups, strict=True)
            )
        )

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back."""
        for param, value in zip(self.params, self._values, strict=True):
            param.copy_(value)
        state = self._optimizer.state
        for key in [key for key in state if key not in self._state]:
            del state[key]
        for key, value in self._state.items():
            state[key] = _put_back(state.get(key), value)
        for group, saved in zip(self._optimizer.param_groups, self._groups, strict=True):
            for name in [name for name in group if name != 'params' and name not in saved]:
                del group[name]
            for name, value in saved.items():
                group[name] = _put_back(group.get(name), value)


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    return {name: _snapshot(value) for name, value in group.items() if name != 'params'}


def _snapshot(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _snapshot(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_snapshot(item) for item in value]
        return items if isinstance(value, list) else tuple(items)
    return copy.copy(value)


def _put_back(now: Any, saved: Any) -> Any:
    """The saved value, in the memory of the present tensors where they fit."""
    if isinstance(saved, Tensor):
        if isinstance(now, Tensor) and now.shape == saved.shape and now.dtype == saved.dtype:
            now.copy_(saved)
            return now
        return saved.clone()
    if isinstance(saved, dict):
        former = now if isinstance(now, dict) else {}
        news = {key: _put_back(former.get(key), value) for key, value in saved.items()}
        if isinstance(now, dict):
            now.clear()
            now.update(news)
            return now
        return news
    if isinstance(saved, list) and isinstance(now, list) and len(now) == len(saved):
        return [_put_back(a, b) for a, b in zip(now, saved, strict=True)]
    return saved


def _same(now: Any, saved: Any) -> bool:
    if isinstance(saved, Tensor):
        # Changes in place are told by the version; a new tensor by its values.
        return isinstance(now, Tensor) and now.shape == saved.shape and torch.equal(now, saved)
    if isinstance(saved, dict):
        return (
            isinstance(now, dict)
            and now.keys() == saved.keys()
            and all(_same(now[key], value) for key, value in saved.items())
        )
    if isinstance(saved, list | tuple):
        return (
            isinstance(now, list | tuple)
            and len(now) == len(saved)
            and all(_same(a, b) for a, b in zip(now, saved, strict=True))
        )
    return bool(now is saved or now == saved)


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value
    if isinstance(value, dict | list | tuple):
        return [tensor for item in items for tensor in _tensors(item)]
    return []
