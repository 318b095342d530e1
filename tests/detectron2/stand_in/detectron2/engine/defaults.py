"""The default trainer, and the functions around it that scripts call."""

from __future__ import annotations

import argparse
import weakref
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from ..checkpoint import DetectionCheckpointer
from ..config import CfgNode, LazyConfig
from ..solver import build_lr_scheduler, build_optimizer
from ..utils import comm
from ..utils.events import CommonMetricPrinter, EventWriter, JSONWriter
from . import hooks
from .train_loop import AMPTrainer, SimpleTrainer, TrainerBase


def create_ddp_model(model: nn.Module, **kwargs: Any) -> nn.Module:
    if comm.get_world_size() == 1:
        return model
    kwargs.setdefault('device_ids', [comm.get_local_rank()])
    return DistributedDataParallel(model, **kwargs)


def default_argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument('--config-file', default='')
    parser.add_argument('--resume', action='store_true')
    parser.add_argument('--eval-only', action='store_true')
    parser.add_argument('--num-gpus', type=int, default=1)
    parser.add_argument('--num-machines', type=int, default=1)
    parser.add_argument('--machine-rank', type=int, default=0)
    parser.add_argument('--dist-url', default='tcp://127.0.0.1:51234')
    parser.add_argument('opts', nargs=argparse.REMAINDER)
    return parser


def default_setup(cfg: Any, args: Any) -> None:
    is_lazy = not isinstance(cfg, CfgNode)
    folder = Path(cfg.train.output_dir if is_lazy else cfg.OUTPUT_DIR)
    if comm.is_main_process():
        folder.mkdir(parents=True, exist_ok=True)
        if is_lazy:
            LazyConfig.save(cfg, str(folder / 'config.yaml'))
        else:
            (folder / 'config.yaml').write_text(cfg.dump())
    seed = cfg.train.get('seed', -1) if is_lazy else cfg.SEED
    if seed >= 0:
        torch.manual_seed(seed + comm.get_rank())


def default_writers(output_dir: str, max_iter: int | None = None) -> list[EventWriter]:
    Path(output_dir).mkdir(parents=True, exist_ok=True)
    return [CommonMetricPrinter(max_iter), JSONWriter(str(Path(output_dir) / 'metrics.json'))]


class DefaultTrainer(TrainerBase):
    def __init__(self, cfg: Any) -> None:
        super().__init__()
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        model = create_ddp_model(model, broadcast_buffers=False)
        trainer = AMPTrainer if cfg.SOLVER.AMP.ENABLED else SimpleTrainer
        self._trainer = trainer(model, data_loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = DetectionCheckpointer(
            model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self)
        )
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    def resume_or_load(self, resume: bool = True) -> None:
        self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume)
        if resume and self.checkpointer.has_checkpoint():
            self.start_iter = self.iter + 1

    def build_hooks(self) -> list[Any]:
        found = [hooks.IterationTimer(), hooks.LRScheduler()]
        if comm.is_main_process():
            period = self.cfg.SOLVER.CHECKPOINT_PERIOD
            found.append(hooks.PeriodicCheckpointer(self.checkpointer, period))
        found.append(hooks.EvalHook(self.cfg.TEST.EVAL_PERIOD, lambda: {}))
        if comm.is_main_process():
            found.append(hooks.PeriodicWriter(self.build_writers(), period=20))
        return found

    def build_writers(self) -> list[EventWriter]:
        return default_writers(self.cfg.OUTPUT_DIR, self.max_iter)

    def train(self) -> None:
        super().train(self.start_iter, self.max_iter)

    def run_step(self) -> None:
        self._trainer.iter = self.iter
        self._trainer.run_step()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), '_trainer': self._trainer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._trainer.load_state_dict(state['_trainer'])

    @classmethod
    def build_model(cls, cfg: Any) -> nn.Module:
        raise NotImplementedError

    @classmethod
    def build_optimizer(cls, cfg: Any, model: nn.Module) -> Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: Any, optimizer: Optimizer) -> Any:
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: Any) -> Any:
        raise NotImplementedError


for _name in ('model', 'data_loader', 'optimizer'):
    setattr(
        DefaultTrainer,
        _name,
        property(
            lambda self, name=_name: getattr(self._trainer, name),
            lambda self, value, name=_name: setattr(self._trainer, name, value),
        ),
    )
