"""The state of an engine in a checkpoint, and the check before it is loaded.

It holds tensors, numbers, strings and containers only, so that ``torch.load(weights_only=True)``
reads it and no class of this package is needed to open a checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..base import Clipper
from ..config.routes import Router
from ..gradients.names import ParamInfo
from ..gradients.sharding import gather, scatter
from .parameters import ParameterBook

#: Key of this state in the ``state_dict()`` of an optimizer, or of MMEngine's wrapper around it.
STATE_KEY = 'gclip'
_VERSION = 1


def _infos(book: ParameterBook, k: int) -> list[ParamInfo]:
    """The parameters of route ``k``."""
    return [info for info, chosen in zip(book.infos, book.assigned, strict=False) if chosen == k]


def _each_param(
    value: Any, params: list[Tensor], change: Callable[[Tensor, Tensor], Tensor]
) -> Any:
    """Apply a change to every tensor of a state that belongs to a parameter of the route.

    These are the lists of tensors; a tensor outside a list belongs to the rule as a whole.
    """
    if isinstance(value, dict):
        return {key: _each_param(item, params, change) for key, item in value.items()}
    if not isinstance(value, list):
        return value
    if any(isinstance(item, Tensor) for item in value):
        pairs = zip(value, params, strict=True)
        return [item if item is None else change(item, param) for item, param in pairs]
    return [_each_param(item, params, change) for item in value]


def dump_state(router: Router, book: ParameterBook, counts: dict[str, int]) -> dict[str, Any]:
    """The state of an engine.

    Args:
        router: the routes and their rules.
        book: the parameters.
        counts: ``steps`` taken and ``consecutive_skips`` up to now.

    Returns:
        dict: ``version``; the counts; ``routes``, for each route its ``rule`` (name, or None if it
        exempts), the names of its ``params``, their ``shapes``, and the rule's own ``state``.
    """
    routes = []
    for k, route in enumerate(router.routes):
        infos = _infos(book, k)
        clipper = route.clipper
        own: dict[str, Any] = {}
        if clipper is not None:
            own = _each_param(clipper.state_dict(), [info.param for info in infos], gather)
        routes.append(
            {
                'rule': None if clipper is None else clipper.name,
                'params': [info.name for info in infos],
                'shapes': [book.whole_shape(info.param) for info in infos],
                'state': own,
            }
        )
    return {'version': _VERSION, 'named': book.is_bound, **counts, 'routes': routes}


def load_state(router: Router, book: ParameterBook, state: dict[str, Any]) -> None:
    """Restore the state of the rules.

    Rules without state may be replaced freely on a resume, and thresholds may change. Where there
    is state to restore, rules and parameters must be the same as when it was saved.

    Raises:
        ValueError: what differs, by name. The rules keep their former state.
    """
    if state.get('version') != _VERSION:
        raise ValueError(
            f'gclip state has version {state.get("version")!r}, this package reads {_VERSION}'
        )
    routes = router.routes
    saved = state['routes']
    if not any(entry['state'] for entry in saved):
        for route in routes:
            if route.clipper is not None:
                route.clipper.load_state_dict({}, [])
        return
    _check_rules(router, saved)
    for k, entry in enumerate(saved):
        _check_params(book, k, entry, bool(state.get('named')))
    before = [(rule, rule.state) for route in routes for rule in _rules(route.clipper)]
    try:
        for k, (route, entry) in enumerate(zip(routes, saved, strict=True)):
            if route.clipper is not None:
                params = [info.param for info in _infos(book, k)]
                own = _each_param(entry['state'], params, scatter)
                route.clipper.load_state_dict(own, params)
    except Exception:
        # A rule replaces its state on loading and leaves the old object unchanged.
        for rule, former in before:
            rule.state = former
        raise


def _rules(clipper: Clipper | None) -> list[Clipper]:
    """A rule and the rules within it."""
    if clipper is None:
        return []
    return [clipper, *(rule for part in getattr(clipper, 'clips', ()) for rule in _rules(part))]


def _check_rules(router: Router, saved: list[dict[str, Any]]) -> None:
    rule_of = [None if r.clipper is None else r.clipper.name for r in router.routes]
    saved_rules = [entry['rule'] for entry in saved]
    if rule_of != saved_rules:
        raise ValueError(
            f'the checkpoint was made with the clipping rules {saved_rules}, this run has '
            f'{rule_of}. Resume with the same clip_grad, or load only the weights to start the '
            'rule from scratch'
        )


def _plain(names: list[str]) -> list[str]:
    """Names without ``module`` parts, which earlier releases kept from some wrappers."""
    return ['.'.join(part for part in name.split('.') if part != 'module') for name in names]


def _check_params(book: ParameterBook, k: int, entry: dict[str, Any], named: bool) -> None:
    infos = _infos(book, k)
    names = [info.name for info in infos]
    if named and book.is_bound and _plain(names) != _plain(entry['params']):
        gone = [name for name in entry['params'] if name not in set(names)]
        new = [name for name in names if name not in set(entry['params'])]
        differences = [
            f'{text} {", ".join(some[:5])}{" ..." if len(some) > 5 else ""}'
            for text, some in (('only in the checkpoint:', gone), ('only in this run:', new))
            if some
        ]
        raise ValueError(
            f'the clipping state of {entry["rule"]} is of other parameters; '
            f'{"; ".join(differences) or "their order differs"}'
        )
    shapes = [book.whole_shape(info.param) for info in infos]
    if shapes != entry['shapes']:
        if len(shapes) != len(entry['shapes']):
            what = f'{len(entry["shapes"])} parameters in the checkpoint, {len(shapes)} in this run'
        else:
            i = next(
                i
                for i, pair in enumerate(zip(shapes, entry['shapes'], strict=True))
                if pair[0] != pair[1]
            )
            what = f'{names[i]} is {shapes[i]}, in the checkpoint {entry["shapes"][i]}'
        raise ValueError(f'the clipping state of {entry["rule"]} is of other parameters: {what}')
