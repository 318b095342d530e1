"""Stand-in for the parts of Detectron2 and fvcore that docs/detectron2.md uses.

Detectron2 has no wheel on the package index, so this module rebuilds its contract: the order of
``DefaultTrainer.__init__``, the loop of ``SimpleTrainer.run_step``, the properties that forward to
the inner trainer, hooks, and the checkpointer with its named objects.
"""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import torch
from torch import nn


class Storage:
    """Stand-in for detectron2.utils.events.EventStorage: scalars by name."""

    def __init__(self) -> None:
        self.scalars: dict[str, list[float]] = {}

    def put_scalars(self, *, smoothing_hint: bool = True, **scalars: float) -> None:
        for name, value in scalars.items():
            self.scalars.setdefault(name, []).append(float(value))


class HookBase:
    trainer: Any = None

    def after_step(self) -> None: ...


class Checkpointer:
    """Stand-in for fvcore.common.checkpoint.Checkpointer."""

    def __init__(self, model: nn.Module, save_dir: str, **checkpointables: Any) -> None:
        self.model = model
        self.checkpointables = dict(checkpointables)
        self.path = Path(save_dir) / 'model.pth'

    def add_checkpointable(self, key: str, checkpointable: Any) -> None:
        if key in self.checkpointables:
            raise KeyError(f'Key {key} already used in the Checkpointer')
        if not hasattr(checkpointable, 'state_dict'):
            raise TypeError("add_checkpointable needs an object with 'state_dict()' method.")
        self.checkpointables[key] = checkpointable

    def save(self) -> None:
        data = {key: item.state_dict() for key, item in self.checkpointables.items()}
        torch.save({'model': self.model.state_dict(), **data}, self.path)

    def resume_or_load(self, resume: bool) -> None:
        checkpoint = torch.load(self.path, map_location='cpu')
        self.model.load_state_dict(checkpoint.pop('model'))
        for key, item in self.checkpointables.items() if resume else ():
            if key in checkpoint:
                item.load_state_dict(checkpoint.pop(key))


class SimpleTrainer:
    def __init__(self, model, data_loader, optimizer) -> None:
        model.train()
        self.model, self.data_loader, self.optimizer = model, data_loader, optimizer
        self.iter = 0

    def run_step(self) -> None:
        data = self.data_loader[self.iter % len(self.data_loader)]
        losses = sum(self.model(data).values())
        self.optimizer.zero_grad()
        losses.backward()
        self.optimizer.step()


class AMPTrainer(SimpleTrainer):
    """A trainer with its own loss scaler, on the CPU."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.grad_scaler = torch.amp.GradScaler('cpu', init_scale=1024.0)

    def run_step(self) -> None:
        data = self.data_loader[self.iter % len(self.data_loader)]
        losses = sum(self.model(data).values())
        self.optimizer.zero_grad()
        self.grad_scaler.scale(losses).backward()
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()


class DefaultTrainer:
    """``cfg`` gives OUTPUT_DIR, MAX_ITER, AMP and DISTRIBUTED."""

    def __init__(self, cfg) -> None:
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        if cfg.DISTRIBUTED:
            model = nn.parallel.DistributedDataParallel(model)
        self._trainer = (AMPTrainer if cfg.AMP else SimpleTrainer)(model, data_loader, optimizer)
        inner = model.module if cfg.DISTRIBUTED else model
        self.checkpointer = Checkpointer(inner, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        self.iter = self.start_iter = 0
        self.max_iter = cfg.MAX_ITER
        self._hooks: list[HookBase] = []

    def register_hooks(self, hooks: list[HookBase]) -> None:
        for hook in hooks:
            hook.trainer = weakref.proxy(self)
        self._hooks.extend(hooks)

    def resume_or_load(self, resume: bool = True) -> None:
        self.checkpointer.resume_or_load(resume)
        if resume:
            self.start_iter = self.iter + 1

    def train(self) -> None:
        self.storage = Storage()
        for iteration in range(self.start_iter, self.max_iter):
            self.iter = iteration
            self._trainer.iter = self.iter
            self._trainer.run_step()
            for hook in self._hooks:
                hook.after_step()

    def state_dict(self) -> dict[str, Any]:
        return {'iteration': self.iter, 'optimizer': self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.iter = state['iteration']
        self.optimizer.load_state_dict(state['optimizer'])

    @classmethod
    def build_model(cls, cfg) -> nn.Module:
        torch.manual_seed(0)
        return Model()

    @classmethod
    def build_optimizer(cls, cfg, model):
        return torch.optim.SGD(model.parameters(), lr=0.1)

    @classmethod
    def build_train_loader(cls, cfg) -> list[torch.Tensor]:
        return list(torch.randn(4, 8, 6, generator=torch.Generator().manual_seed(1)))


for _name in ('model', 'data_loader', 'optimizer'):
    setattr(DefaultTrainer, _name, property(lambda self, name=_name: getattr(self._trainer, name)))


class Model(nn.Module):
    """A model with the parameter name that the page excludes."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(6, 5)
        self.box_predictor = nn.ModuleDict({'cls_score': nn.Linear(5, 3)})

    def forward(self, data: torch.Tensor) -> dict[str, torch.Tensor]:
        scores = self.box_predictor['cls_score'](self.backbone(data))
        return {'loss_cls': scores.square().mean(), 'loss_box': scores.mean().abs()}
