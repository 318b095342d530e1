"""A run with batch norm in which the model spoils chosen iterations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS, MODELS, OPTIM_WRAPPERS
from mmengine.runner import Runner
from torch import Tensor, nn

from tests.engine.door_task import door_config

SGD = dict(type='SGD', lr=0.02, momentum=0.9)
NORM = dict(type='norm', max_norm=0.5)


@MODELS.register_module()
class SpoiltNet(BaseModel):
    """A model with batch norm, whose input is NaN in the iterations ``bad``, from 1."""

    def __init__(self, bad: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh())
        self.head = nn.Linear(8, 1)
        self.bad = tuple(bad)
        self.calls = 0

    def forward(self, inputs: list, data_samples: list, mode: str = 'tensor') -> Any:
        x = torch.stack([torch.as_tensor(item) for item in inputs])
        if mode == 'loss':
            self.calls += 1
            if self.calls in self.bad:
                x = x * float('nan')
        out = self.head(self.backbone(x))
        target = torch.stack([torch.as_tensor(sample.target) for sample in data_samples])
        if mode != 'loss':
            return out
        # One term stays finite in every iteration.
        return {
            'loss_square': (out - target).square().mean(),
            'loss_weights': 1e-3 * self.head.weight.square().sum() + 0.01 * self.calls,
        }


@OPTIM_WRAPPERS.register_module()
class ScaledWrapper(OptimWrapper):
    """A stock wrapper with a loss scaler that runs on a CPU."""

    def __init__(self, init_scale: float = 2.0**8, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.loss_scaler = torch.amp.GradScaler('cpu', init_scale=init_scale)

    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        self.loss_scaler.scale(loss).backward(**kwargs)
        self._inner_count += 1

    def step(self, **kwargs: Any) -> None:
        self.loss_scaler.step(self.optimizer, **kwargs)
        self.loss_scaler.update()


def on_device_only(monkeypatch: Any) -> None:
    """Make the engine believe that only the device knows whether a step is finite."""
    from gclip_mm.clipping.step import engine

    monkeypatch.setattr(engine, 'host', lambda value: None)


@HOOKS.register_module()
class Snapshots(Hook):
    """Keeps a copy of a model's state after every iteration."""

    priority = 'LOWEST'

    def __init__(self) -> None:
        self.states: list[dict[str, Tensor]] = []

    def watched(self, runner: Runner) -> nn.Module:
        return next(h.ema_model for h in runner.hooks if hasattr(h, 'ema_model'))

    def after_train_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        state = self.watched(runner).state_dict()
        self.states.append({key: value.clone() for key, value in state.items()})


def build_run(
    work_dir: Path | str,
    door: str = 'wrapper',
    bad: tuple[int, ...] = (),
    hooks: tuple[dict, ...] = (),
    clip_grad: dict | None = NORM,
    optimizer: dict = SGD,
    model: dict | None = None,
    scaler: bool = False,
    kind: type = Runner,
    **changes: Any,
) -> Runner:
    """A run of 12 iterations; ``bad`` are the iterations with a NaN input, from 1.

    Args:
        work_dir, door, clip_grad, optimizer, changes: see :func:`door_config`.
        bad: the iterations that are spoilt.
        hooks: more hooks.
        model: another model.
        scaler: train with a loss scaler.
        kind: the class of the runner.
    """
    cfg: Config = door_config(door, work_dir, clip_grad, optimizer, **changes)
    cfg.setdefault('env_cfg', {})
    cfg.model = model or dict(type='SpoiltNet', bad=bad)
    if scaler:
        ours = door == 'wrapper'
        cfg.optim_wrapper.type = 'GClipAmpOptimWrapper' if ours else 'ScaledWrapper'
        cfg.optim_wrapper.update(dict(loss_scale=2.0**8) if ours else dict(init_scale=2.0**8))
    cfg.custom_hooks = [*cfg.custom_hooks, *hooks]
    return kind.from_cfg(cfg)


def hook_of(runner: Runner, kind: type) -> Any:
    """The hook of a class."""
    return next(hook for hook in runner.hooks if isinstance(hook, kind))
