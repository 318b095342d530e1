"""The rule of each parameter of a config's model, found without training."""

from __future__ import annotations

from typing import Any, NamedTuple

from mmengine.config import Config
from mmengine.optim import OptimWrapper, OptimWrapperDict, build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from ..clipping.base import Clipper
from ..clipping.checks import ClipConfigError
from ..clipping.config.routes import Route
from ..clipping.gradients.names import ParamInfo, describe_params
from ..clipping.step.engine import GradClipEngine


class RouteRow(NamedTuple):
    """One parameter and the rule that governs it.

    Attributes:
        name: dotted name of the parameter.
        module: class of the module that owns it.
        shape: of the parameter.
        units: number of units with a norm of their own in adaptive rules.
        rule: class of the rule; ``'exempt'``, ``'none'`` (the config does not clip), or
            ``'frozen'`` (it has no gradient).
        threshold: the rule's thresholds, as in ``'max_norm=35'``.
        route: the entry of ``clip_grad`` that decides, as in ``'rules[0] AGC'``.
        optimizer: name of the member, with an ``OptimWrapperDict``.
    """

    name: str
    module: str
    shape: tuple[int, ...]
    units: int
    rule: str
    threshold: str
    route: str
    optimizer: str = ''


def route_table(cfg: Config) -> list[RouteRow]:
    """A row for every parameter of a config's model, in the model's order.

    The model and its optimizer are built; nothing is loaded or downloaded. The routes are those of
    the engine that would train the model, of the optimizer wrapper or of a ``GClipHook``.

    Args:
        cfg: a complete MMEngine config with ``model`` and ``optim_wrapper``.

    Raises:
        ClipConfigError: an invalid ``clip_grad``, a pattern that matches no parameter,
            or a config without model or optimizer.
    """
    for key in ('model', 'optim_wrapper'):
        if not cfg.get(key):
            raise ClipConfigError(f'the config has no {key}')
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    model = MODELS.build(cfg.model)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    members = dict(wrapper.items()) if isinstance(wrapper, OptimWrapperDict) else {'': wrapper}
    hook = _hook_clip_grad(cfg)
    rows: dict[str, RouteRow] = {}
    for name, member in members.items():
        rows.update({row.name: row for row in _member_rows(name, member, model, hook)})
    every = describe_params(model.parameters(), model)
    frozen = '' if len(members) == 1 else None
    return [
        rows.get(info.name) or _row(info, 'frozen', '', 'not in the optimizer', frozen or '')
        for info in every
    ]


def _hook_clip_grad(cfg: Config) -> dict[str, Any] | None:
    for hook in cfg.get('custom_hooks') or []:
        kind = hook.get('type') if isinstance(hook, dict) else None
        if getattr(kind, '__name__', kind) == 'GClipHook':
            return hook['clip_grad']
    return None


def _member_rows(
    name: str, wrapper: OptimWrapper, model: nn.Module, hook: dict[str, Any] | None
) -> list[RouteRow]:
    engine = getattr(wrapper, 'engine', None)
    stock = None if engine is not None else getattr(wrapper, 'clip_grad_kwargs', None)
    if hook is not None:
        if engine is not None or stock:
            raise ClipConfigError('GClipHook: the optimizer wrapper clips already')
        engine = GradClipEngine(wrapper.optimizer, hook)
    if engine is None:
        params = [p for group in wrapper.optimizer.param_groups for p in group['params']]
        rule, threshold = ('none', '') if not stock else ('stock', _keys(stock))
        return [
            _row(info, rule, threshold, type(wrapper).__name__, name)
            for info in describe_params(params, model)
        ]
    engine.bind(model)
    routes = engine.config.router.routes
    return [
        _route_row(info, routes[k], name)
        for info, k in zip(engine.book.infos, engine.book.assigned, strict=True)
    ]


def _route_row(info: ParamInfo, route: Route, optimizer: str) -> RouteRow:
    if route.clipper is None:
        return _row(info, 'exempt', '', f'{route.label} {_pattern(route)}'.strip(), optimizer)
    label = f'{route.label} {_pattern(route)}'.strip()
    rule = route.clipper.name
    return _row(info, rule, thresholds_of(route.clipper), label, optimizer)


def _pattern(route: Route) -> str:
    selector = route.selector
    if selector is None:
        return ''
    return repr(selector.match) if selector.module is None else f'module {selector.module}'


def thresholds_of(clipper: Clipper) -> str:
    """The thresholds that a rule uses, as ``'max_norm=35'``."""
    core = clipper.core
    values = {key: getattr(core, key, None) for key in core.thresholds}
    return _keys({key: value for key, value in values.items() if value is not None})


def _keys(values: dict[str, Any]) -> str:
    return ', '.join(
        f'{key}={value:g}' if isinstance(value, float) else f'{key}={value}'
        for key, value in values.items()
    )


def _row(info: ParamInfo, rule: str, threshold: str, route: str, optimizer: str) -> RouteRow:
    if not info.param.requires_grad:
        rule, threshold, route = 'frozen', '', 'requires_grad=False'
    units = 1
    for size in info.layout.shape(info.param):
        units *= size
    return RouteRow(
        info.name,
        type(info.module).__name__,
        tuple(info.param.shape),
        units,
        rule,
        threshold,
        route,
        optimizer,
    )
