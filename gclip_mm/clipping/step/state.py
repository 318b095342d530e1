"""The engine's state in a checkpoint: what is saved, and the check before it is loaded.

Only tensors, numbers, strings and containers of them, so that ``torch.load(weights_only=True)``
reads it and no class of this package is needed to open a checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..gradients.sharding import gather, scatter

if TYPE_CHECKING:
    from ..base import Clipper
    from .engine import GradClipEngine

_VERSION = 1


def _members(engine: GradClipEngine, k: int) -> list[int]:
    return [i for i, chosen in enumerate(engine.book.assigned) if chosen == k]


def _each_param(
    value: Any, params: list[Tensor], change: Callable[[Tensor, Tensor], Tensor]
) -> Any:
    """Apply a change to every tensor of a state that belongs to a parameter of the route.

    Those are the lists of tensors; a tensor by itself is of the rule as a whole.
    """
    if isinstance(value, dict):
        return {key: _each_param(item, params, change) for key, item in value.items()}
    if not isinstance(value, list):
        return value
    if any(isinstance(item, Tensor) for item in value):
        pairs = zip(value, params, strict=True)
        return [item if item is None else change(item, param) for item, param in pairs]
    return [_each_param(item, params, change) for item in value]


def dump_state(engine: GradClipEngine) -> dict[str, Any]:
    """The state of an engine.

    Returns:
        dict: ``version``; ``steps`` taken and ``consecutive_skips`` up to now; ``routes``, for each
        route its ``rule`` (class name, or None where it exempts), the ``params`` it governs by
        name, their ``shapes``, and the rule's own ``state``.
    """
    routes = []
    for k, route in enumerate(engine.config.router.routes):
        infos = [engine.book.infos[i] for i in _members(engine, k)]
        routes.append(
            {
                'rule': None if route.clipper is None else type(route.clipper).__name__,
                'params': [info.name for info in infos],
                'shapes': [engine.book.whole_shape(info.param) for info in infos],
                'state': {}
                if route.clipper is None
                else _each_param(route.clipper.state_dict(), [i.param for i in infos], gather),
            }
        )
    return {
        'version': _VERSION,
        'named': engine.is_bound,
        'steps': engine.steps,
        'consecutive_skips': engine.skips.count,
        'routes': routes,
    }


def load_state(engine: GradClipEngine, state: dict[str, Any]) -> None:
    """Restore a state.

    Rules that keep no state may be exchanged freely on a resume, and thresholds may change. Where
    there is state to be restored, rule and parameters must be those that it was made with.

    Raises:
        ValueError: what differs, by name. The engine is left as it was.
    """
    if state.get('version') != _VERSION:
        raise ValueError(
            f'gclip state has version {state.get("version")!r}, this package reads {_VERSION}'
        )
    routes = engine.config.router.routes
    saved = state['routes']
    has_state = any(entry['state'] for entry in saved)
    if has_state:
        _check_rules(engine, saved)
        for k, entry in enumerate(saved):
            _check_params(engine, k, entry, bool(state.get('named')))
        before = [(rule, rule.state) for route in routes for rule in _rules(route.clipper)]
        try:
            for k, (route, entry) in enumerate(zip(routes, saved, strict=True)):
                if route.clipper is not None:
                    params = [engine.book.infos[i].param for i in _members(engine, k)]
                    own = _each_param(entry['state'], params, scatter)
                    route.clipper.load_state_dict(own, params)
        except Exception:
            # A rule puts a new state in the place of the old one, and does not change that.
            for rule, own in before:
                rule.state = own
            raise
    else:
        for route in routes:
            if route.clipper is not None:
                route.clipper.load_state_dict({}, [])
    engine.steps = state['steps']
    engine.skips.count = state['consecutive_skips']


def _rules(clipper: Clipper | None) -> list[Clipper]:
    """A rule and those that it is made of."""
    if clipper is None:
        return []
    return [clipper, *(rule for part in getattr(clipper, 'clips', ()) for rule in _rules(part))]


def _check_rules(engine: GradClipEngine, saved: list[dict]) -> None:
    rule_of = [
        None if route.clipper is None else type(route.clipper).__name__
        for route in engine.config.router.routes
    ]
    saved_rules = [entry['rule'] for entry in saved]
    if rule_of != saved_rules:
        raise ValueError(
            f'the checkpoint was made with the clipping rules {saved_rules}, this run has '
            f'{rule_of}. Resume with the same clip_grad, or use load_from instead of resume to '
            'start the rule afresh'
        )


def _check_params(engine: GradClipEngine, k: int, entry: dict, named: bool) -> None:
    infos = [engine.book.infos[i] for i in _members(engine, k)]
    names = [info.name for info in infos]
    if named and engine.is_bound and names != entry['params']:
        gone = [name for name in entry['params'] if name not in set(names)]
        new = [name for name in names if name not in set(entry['params'])]
        what = [
            f'{text} {", ".join(some[:5])}{" ..." if len(some) > 5 else ""}'
            for text, some in (('only in the checkpoint:', gone), ('only in this run:', new))
            if some
        ]
        raise ValueError(
            f'the clipping state of {entry["rule"]} is of other parameters; '
            f'{"; ".join(what) or "their order differs"}'
        )
    shapes = [engine.book.whole_shape(info.param) for info in infos]
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
