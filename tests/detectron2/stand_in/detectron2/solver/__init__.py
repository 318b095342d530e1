"""Optimizers, and Detectron2's own clipping."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer


def get_default_optimizer_params(
    model: nn.Module, weight_decay_norm: float | None = None, **defaults: Any
) -> list[dict[str, Any]]:
    """Groups of parameters with equal settings."""
    groups: dict[Any, dict[str, Any]] = {}
    for module in model.modules():
        for param in module.parameters(recurse=False):
            if not param.requires_grad:
                continue
            setting = dict(defaults)
            is_norm = isinstance(module, nn.modules.batchnorm._NormBase | nn.GroupNorm)
            if is_norm and weight_decay_norm is not None:
                setting['weight_decay'] = weight_decay_norm
            group = groups.setdefault(tuple(setting.items()), {**setting, 'params': []})
            group['params'].append(param)
    return list(groups.values())


def maybe_add_gradient_clipping(cfg: Any, optimizer: Optimizer) -> Optimizer:
    """Make the optimizer one of a new class whose step clips each parameter by itself."""
    if not cfg.SOLVER.CLIP_GRADIENTS.ENABLED:
        return optimizer
    setting = cfg.SOLVER.CLIP_GRADIENTS

    def per_param_clipper(param: nn.Parameter) -> None:
        if setting.CLIP_TYPE == 'value':
            torch.nn.utils.clip_grad_value_(param, setting.CLIP_VALUE)
        else:
            torch.nn.utils.clip_grad_norm_(param, setting.CLIP_VALUE, setting.NORM_TYPE)

    def step(self: Optimizer, closure: Any = None) -> None:
        for param in itertools.chain(*[group['params'] for group in self.param_groups]):
            per_param_clipper(param)
        super(type(self), self).step(closure)

    name = f'{type(optimizer).__name__}WithGradientClip'
    optimizer.__class__ = type(name, (type(optimizer),), {'step': step})
    return optimizer


def build_optimizer(cfg: Any, model: nn.Module) -> Optimizer:
    groups = get_default_optimizer_params(
        model, lr=cfg.SOLVER.BASE_LR, weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM
    )
    optimizer = torch.optim.SGD(
        groups,
        lr=cfg.SOLVER.BASE_LR,
        momentum=cfg.SOLVER.MOMENTUM,
        nesterov=cfg.SOLVER.NESTEROV,
        weight_decay=cfg.SOLVER.WEIGHT_DECAY,
        foreach=True,
    )
    return maybe_add_gradient_clipping(cfg, optimizer)


def build_lr_scheduler(cfg: Any, optimizer: Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    def factor(iteration: int) -> float:
        decays = sum(iteration >= step for step in cfg.SOLVER.STEPS)
        warm = min(iteration / cfg.SOLVER.WARMUP_ITERS, 1.0) if cfg.SOLVER.WARMUP_ITERS else 1.0
        start = cfg.SOLVER.WARMUP_FACTOR
        return (start * (1 - warm) + warm) * cfg.SOLVER.GAMMA**decays

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
