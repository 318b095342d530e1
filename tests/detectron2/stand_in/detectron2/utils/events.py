"""The event storage and its writers."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

_stack: list[EventStorage] = []


def get_event_storage() -> EventStorage:
    assert _stack, "get_event_storage() has to be called inside a 'with EventStorage(...)' context!"
    return _stack[-1]


def has_event_storage() -> bool:
    return bool(_stack)


class EventStorage:
    """Scalars by name, each with the iteration at which it was put."""

    def __init__(self, start_iter: int = 0) -> None:
        self.iter = start_iter
        self._values: dict[str, list[tuple[float, int]]] = defaultdict(list)
        self._smoothed: dict[str, bool] = {}

    def put_scalar(
        self, name: str, value: Any, smoothing_hint: bool = True, cur_iter: int | None = None
    ) -> None:
        self._values[name].append((float(value), self.iter if cur_iter is None else cur_iter))
        assert self._smoothed.setdefault(name, smoothing_hint) == smoothing_hint, (
            f'Scalar {name} was put with a different smoothing_hint!'
        )

    def put_scalars(
        self, *, smoothing_hint: bool = True, cur_iter: int | None = None, **scalars: Any
    ) -> None:
        for name, value in scalars.items():
            self.put_scalar(name, value, smoothing_hint=smoothing_hint, cur_iter=cur_iter)

    def latest(self) -> dict[str, tuple[float, int]]:
        return {name: values[-1] for name, values in self._values.items()}

    def latest_with_smoothing_hint(self, window_size: int = 20) -> dict[str, tuple[float, int]]:
        """The last value of each name, or the median of the last ``window_size`` iterations."""
        result = {}
        for name, (value, iteration) in self.latest().items():
            if self._smoothed[name]:
                values = self._values[name]
                value = median(v for v, when in values if when > iteration - window_size)
            result[name] = value, iteration
        return result

    def __enter__(self) -> EventStorage:
        _stack.append(self)
        return self

    def __exit__(self, *_: Any) -> None:
        assert _stack.pop() is self


class EventWriter:
    def write(self) -> None:
        raise NotImplementedError

    def close(self) -> None: ...


class JSONWriter(EventWriter):
    """One line for each iteration that has numbers which are newer than the last line."""

    def __init__(self, json_file: str, window_size: int = 20) -> None:
        self._file = Path(json_file).open('a')  # noqa: SIM115  close() closes it
        self._window_size = window_size
        self._last_write = -1

    def write(self) -> None:
        lines: dict[int, dict[str, float]] = defaultdict(dict)
        storage = get_event_storage()
        for name, (value, when) in storage.latest_with_smoothing_hint(self._window_size).items():
            if when > self._last_write:
                lines[when][name] = value
        self._last_write = max([self._last_write, *lines])
        for when, line in lines.items():
            self._file.write(json.dumps({**line, 'iteration': when}, sort_keys=True) + '\n')
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class CommonMetricPrinter(EventWriter):
    def __init__(self, max_iter: int | None = None) -> None:
        self._max_iter = max_iter

    def write(self) -> None:
        storage = get_event_storage()
        if storage.iter != self._max_iter:
            losses = {
                name: value for name, (value, _) in storage.latest().items() if 'loss' in name
            }
            logging.getLogger('detectron2.utils.events').info('iter: %d %s', storage.iter, losses)
