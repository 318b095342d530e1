"""Attaches step observers to a run: to an engine, or to a stock optimizer wrapper."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner
from torch import Tensor, nn

from ...clipping.base import Measure
from ...clipping.config.routes import Route
from ...clipping.gradients.names import describe_params
from ...clipping.gradients.norms import combine, tensor_norms
from ...clipping.gradients.sharding import is_dtensor, is_spread_flat
from ...clipping.gradients.view import GradView
from ...clipping.step.engine import GradClipEngine
from ...clipping.step.observers import StepObserver
from ...clipping.step.optimizer import is_nested
from ...clipping.step.parameters import RoutedView
from ...clipping.step.record import make_record

#: Assumed maximum of iterations per step where a model accumulates gradients itself.
_MOST_BY_HAND = 16


def wrapper_members(wrapper: OptimWrapper | OptimWrapperDict) -> dict[str, OptimWrapper]:
    """The members of an ``OptimWrapperDict`` by name, or the one wrapper under the name ``''``."""
    return dict(wrapper.items()) if isinstance(wrapper, OptimWrapperDict) else {'': wrapper}


def iterations_of_a_step(wrapper: OptimWrapper) -> int:
    """Maximum number of iterations whose data belong to one step of a wrapper.

    The model decides when a member of an ``OptimWrapperDict`` steps; the step then belongs to the
    last iterations.
    """
    return max(getattr(wrapper, '_accumulative_counts', 1), _MOST_BY_HAND)


def find_engines(runner: Runner) -> dict[str, GradClipEngine | None]:
    """The engine of each member of the run's wrapper; None for a stock wrapper without a hook."""
    engines: dict[str, GradClipEngine | None] = {
        name: getattr(wrapper, 'engine', None)
        for name, wrapper in wrapper_members(runner.optim_wrapper).items()
    }
    for hook in runner.hooks:
        for name, engine in getattr(hook, 'engines', {}).items():
            if isinstance(engine, GradClipEngine):
                engines[name] = engine
    return engines


def refuse_sharded(runner: Runner, who: str) -> None:
    """Refuse a model whose ranks hold only parts of the parameters, and so of a module.

    Args:
        runner: the runner.
        who: the hook that refuses; begins the message.

    Raises:
        ValueError: a parameter is a DTensor or belongs to an FSDP module.
    """
    params = list(runner.model.parameters())
    if any(is_dtensor(p) for p in params) or is_spread_flat(runner.model):
        raise ValueError(
            f'{who} does not support sharded parameters (FSDP, tensor parallelism): remove it from '
            'custom_hooks'
        )


def observe(runner: Runner, observers: Mapping[str, StepObserver]) -> Callable[[], None]:
    """Attach one observer to each member of the run's optimizer wrapper.

    Args:
        runner: a runner whose optimizer wrapper is built. Call after the ``before_run`` of hooks
            that clip.
        observers: the observers by the names of :func:`wrapper_members`.

    Returns:
        Callable: detaches the observers.
    """
    engines = find_engines(runner)
    undo: list[Callable[[], None]] = []
    for name, wrapper in wrapper_members(runner.optim_wrapper).items():
        observer, engine = observers[name], engines[name]
        if engine is not None:
            engine.observers.append(observer)
            undo.append(functools.partial(engine.observers.remove, observer))
        else:
            undo.append(_StockSeam(wrapper, runner.model, observer).remove)

    def detach() -> None:
        for step in undo:
            step()
        undo.clear()

    return detach


class _StockSeam:
    """Calls an observer as an engine would, for a stock wrapper.

    A stock wrapper clips, if at all, with ``torch.nn.utils`` in ``_clip_grad``, before the
    optimizer's ``step``. Without clipping, the gradients are complete and unscaled for the first
    time in the step hook of the optimizer.

    Args:
        wrapper: the stock wrapper.
        model: the model that names the parameters.
        observer: the observer to call.
    """

    def __init__(self, wrapper: OptimWrapper, model: nn.Module, observer: StepObserver) -> None:
        self._wrapper = wrapper
        self._model = model
        self._observer = observer
        self._views: list[RoutedView] = []
        self._norm: Tensor | None = None
        self._clip = wrapper._clip_grad
        wrapper._clip_grad = self._clip_observed
        self._hook = wrapper.optimizer.register_step_pre_hook(self._before_step)

    def remove(self) -> None:
        """Restore the wrapper and remove the step hook."""
        self._wrapper.__dict__.pop('_clip_grad', None)
        self._hook.remove()

    def _clip_observed(self) -> None:
        self._before_clip(None)
        self._clip()

    @torch.no_grad()
    def _before_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if is_nested(optimizer):
            return
        scale = getattr(optimizer, 'grad_scale', None)
        if self._norm is None:
            self._before_clip(scale)
        norm, self._norm = self._norm, None
        if norm is None:
            return
        self._observer.after_clip(self._views, [None])
        post = combine(tensor_norms(self._views[0].view.grads))
        if scale is not None:
            post = post / scale.to(post.device)
        coef = torch.where(norm > 0, post / norm, 1.0)
        bad = 1.0 - torch.isfinite(norm).to(torch.float64)
        nan = float('nan')
        self._observer.on_record(make_record(norm.device, norm, post, coef, nan, nan, bad))

    @torch.no_grad()
    def _before_clip(self, scale: Tensor | None) -> None:
        optimizer = self._wrapper.optimizer
        params = [p for group in optimizer.param_groups for p in group['params']]
        live = [i for i, p in enumerate(params) if p.grad is not None]
        if not live:
            return
        if not self._views or self._views[0].view.positions != live:
            infos = describe_params(params, self._model)
            route = Route(None, None, 'stock')
            view = GradView([infos[i] for i in live], live, live, len(params))
            self._views = [RoutedView(route, view)]
        view = self._views[0].view
        view.load([params[i].grad for i in live])
        parts = tensor_norms(view.grads)
        measure = Measure(combine(parts), parts)
        if scale is not None:
            measure = measure.unscaled(scale)
        self._norm = measure.norm
        self._observer.before_clip(self._views, [measure], measure.norm, scale)
