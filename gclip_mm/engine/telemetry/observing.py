"""Puts an observer on whatever clips in a run: the engine's own seam, or a stock wrapper's."""

from __future__ import annotations

from collections.abc import Callable
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

#: Iterations that a model is thought to accumulate by itself at most.
_MOST_BY_HAND = 16


def wrapper_members(wrapper: OptimWrapper | OptimWrapperDict) -> dict[str, OptimWrapper]:
    """The members of an ``OptimWrapperDict`` by name, or the one wrapper under the name ``''``."""
    return dict(wrapper.items()) if isinstance(wrapper, OptimWrapperDict) else {'': wrapper}


def iterations_of_a_step(wrapper: OptimWrapper) -> int:
    """How many iterations' data belong to a step of a wrapper at most.

    A member of an ``OptimWrapperDict`` may be left out for as long as its model likes, and then
    step on what the last of them has brought.
    """
    return max(getattr(wrapper, '_accumulative_counts', 1), _MOST_BY_HAND)


def find_engines(runner: Runner) -> dict[str, GradClipEngine | None]:
    """The engine that clips for each member of the run's wrapper; None where a stock one does."""
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
    """Raise where a rank holds only parts of the parameters, so that it cannot see a module whole.

    Raises:
        ValueError: a parameter is a DTensor or belongs to an FSDP module.
    """
    params = list(runner.model.parameters())
    if any(is_dtensor(p) for p in params) or is_spread_flat(runner.model):
        raise ValueError(
            f'{who} does not support sharded parameters (FSDP, tensor parallelism): take it out of '
            'custom_hooks'
        )


def observe(runner: Runner, observers: dict[str, StepObserver]) -> Callable[[], None]:
    """Let each observer watch one member of the run's optimizer wrapper.

    Args:
        runner: a runner whose optimizer wrapper is built; hooks that clip must have had their
            ``before_run``.
        observers: by the names of :func:`wrapper_members`.

    Returns:
        Callable: takes the observers away again.
    """
    engines = find_engines(runner)
    undo: list[Callable[[], None]] = []
    for name, wrapper in wrapper_members(runner.optim_wrapper).items():
        observer, engine = observers[name], engines[name]
        if engine is not None:
            engine.observers.append(observer)
            undo.append(lambda engine=engine, observer=observer: engine.observers.remove(observer))
        else:
            undo.append(_StockSeam(wrapper, runner.model, observer).remove)

    def detach() -> None:
        for step in undo:
            step()
        undo.clear()

    return detach


class _StockSeam:
    """Makes the calls of an engine for a wrapper that clips, if at all, by ``torch.nn.utils``.

    Such a wrapper clips in ``_clip_grad``, before the optimizer's ``step``; where it does not clip
    the gradients are first seen complete, and unscaled, in the optimizer's own step hook.
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
