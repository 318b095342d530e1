"""Clips the optimizer of a Detectron2 script."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim import Optimizer

from ..clipping.checks import ClipConfigError, check_number
from ..clipping.step.engine import GradClipEngine
from ..clipping.step.state import STATE_KEY
from .events import Numbers
from .guard import Guard
from .rule import read_rule


def clip(
    optimizer: Optimizer,
    rule: str | Mapping[str, Any],
    model: nn.Module,
    log_period: int = 20,
) -> Optimizer:
    """Clip the gradients of an optimizer in every ``step`` from now on.

    The state of the rule is part of ``optimizer.state_dict()``, which every Detectron2 script
    checkpoints. The numbers of a step go to the current event storage, as ``gclip/grad_norm`` and
    so on (:class:`~gclip_mm.detectron2.events.Numbers`).

    If the rule has ``max_consecutive_skips`` (and the policy ``nonfinite='skip'``, the default), a
    non-finite loss and an RPN that raises ``FloatingPointError`` leave the step out instead of
    ending the run (:class:`~gclip_mm.detectron2.guard.Guard`).

    Args:
        optimizer: what ``build_optimizer`` has returned.
        rule: a ``clip_grad`` dict or ``DictConfig``
            (:func:`gclip_mm.clipping.config.parse.parse_clip_grad`); a string such as ``'Auto'`` or
            ``'type=AGC,clip_factor=0.01'``; or the whole ``cfg`` of Detectron2, whose
            ``SOLVER.GCLIP`` holds that string (empty: no clipping).
        model: the model, with or without ``DistributedDataParallel`` around it.
        log_period: iterations from one entry in the event storage to the next; the period of the
            writers.

    Returns:
        Optimizer: ``optimizer`` itself.

    Raises:
        ClipConfigError: an invalid rule; an optimizer that is clipped already, by this package or
            by ``SOLVER.CLIP_GRADIENTS``; a ``cfg`` without the key ``SOLVER.GCLIP``.

    Example:
        >>> optimizer = build_optimizer(cfg, model)
        >>> optimizer = clip(optimizer, dict(type='AGC', clip_factor=0.01), model)
    """
    clip_grad = read_rule(rule)
    if clip_grad is not None:
        attach(optimizer, clip_grad, model, log_period)
    return optimizer


def attach(
    optimizer: Optimizer, clip_grad: dict[str, Any], model: nn.Module, log_period: int = 20
) -> GradClipEngine:
    """:func:`clip` with a ``clip_grad`` dict; returns the engine."""
    check_number('log_period', log_period, low=1, integer=True, where='clip')
    if not isinstance(model, nn.Module):
        raise ClipConfigError(
            f'clip: model must be the torch.nn.Module that is trained, got {type(model).__name__}'
        )
    if not hasattr(Optimizer, 'register_load_state_dict_pre_hook'):
        raise ClipConfigError('clip: saving the state with the optimizer needs torch 2.1 or later')
    while isinstance(model, DataParallel | DistributedDataParallel):
        model = model.module
    numbers = Numbers(log_period)
    guard = Guard(model)
    engine = GradClipEngine(optimizer, clip_grad, model=model, on_record=numbers.add, owner=guard)
    guard.watch(engine)

    def save(optimizer: Optimizer, state: dict[str, Any]) -> None:
        state[STATE_KEY] = engine.state_dict()

    def load(optimizer: Optimizer, state: dict[str, Any]) -> None:
        # torch hands over a shallow copy, and passes over keys that it does not know.
        clipping = state.get(STATE_KEY)
        if clipping is not None:
            engine.load_state_dict(clipping)

    engine.optimizer.register_state_dict_post_hook(save)
    engine.optimizer.register_load_state_dict_pre_hook(load)
    return engine
