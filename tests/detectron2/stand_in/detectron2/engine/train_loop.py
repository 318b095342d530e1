"""The loops: what is called, in which order, and where it raises."""

from __future__ import annotations

import concurrent.futures
import logging
import time
import weakref
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from ..utils import comm
from ..utils.events import EventStorage, get_event_storage


class HookBase:
    trainer: Any = None

    def before_train(self) -> None: ...

    def after_train(self) -> None: ...

    def before_step(self) -> None: ...

    def after_backward(self) -> None: ...

    def after_step(self) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        return {}


class TrainerBase:
    def __init__(self) -> None:
        self._hooks: list[HookBase] = []
        self.iter = self.start_iter = 0

    def register_hooks(self, hooks: list[HookBase | None]) -> None:
        for hook in hooks:
            if hook is not None:
                assert isinstance(hook, HookBase)
                hook.trainer = weakref.proxy(self)
                self._hooks.append(hook)

    def train(self, start_iter: int, max_iter: int) -> None:
        self.iter = self.start_iter = start_iter
        self.max_iter = max_iter
        with EventStorage(start_iter) as self.storage:
            try:
                self.before_train()
                for self.iter in range(start_iter, max_iter):
                    self.before_step()
                    self.run_step()
                    self.after_step()
                self.iter += 1
            finally:
                self.after_train()

    def before_train(self) -> None:
        for hook in self._hooks:
            hook.before_train()

    def after_train(self) -> None:
        self.storage.iter = self.iter
        for hook in self._hooks:
            hook.after_train()

    def before_step(self) -> None:
        self.storage.iter = self.iter
        for hook in self._hooks:
            hook.before_step()

    def after_backward(self) -> None:
        for hook in self._hooks:
            hook.after_backward()

    def after_step(self) -> None:
        for hook in self._hooks:
            hook.after_step()

    def state_dict(self) -> dict[str, Any]:
        states = {type(hook).__qualname__: hook.state_dict() for hook in self._hooks}
        states = {name: state for name, state in states.items() if state}
        return {'iteration': self.iter, **({'hooks': states} if states else {})}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.iter = state['iteration']
        for hook in self._hooks:
            if type(hook).__qualname__ in state.get('hooks', {}):
                hook.load_state_dict(state['hooks'][type(hook).__qualname__])


class SimpleTrainer(TrainerBase):
    def __init__(
        self,
        model: nn.Module,
        data_loader: Any,
        optimizer: Optimizer,
        gather_metric_period: int = 1,
        zero_grad_before_forward: bool = False,
        async_write_metrics: bool = False,
    ) -> None:
        super().__init__()
        model.train()
        self.model, self.data_loader, self.optimizer = model, data_loader, optimizer
        self._iterator: Any = None
        self.gather_metric_period = gather_metric_period
        self.zero_grad_before_forward = zero_grad_before_forward
        self.async_write_metrics = async_write_metrics
        self.concurrent_executor = concurrent.futures.ThreadPoolExecutor(max_workers=1)

    @property
    def _data_loader_iter(self) -> Any:
        if self._iterator is None:
            self._iterator = iter(self.data_loader)
        return self._iterator

    def run_step(self) -> None:
        assert self.model.training, '[SimpleTrainer] model was changed to eval mode!'
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        if self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        loss_dict = self.model(data)
        if isinstance(loss_dict, torch.Tensor):
            losses, loss_dict = loss_dict, {'total_loss': loss_dict}
        else:
            losses = sum(loss_dict.values())
        if not self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        losses.backward()
        self.after_backward()
        if self.async_write_metrics:
            self.concurrent_executor.submit(
                self._write_metrics, loss_dict, data_time, iter=self.iter
            )
        else:
            self._write_metrics(loss_dict, data_time)
        self.optimizer.step()

    def _write_metrics(
        self, loss_dict: Any, data_time: float, prefix: str = '', iter: int | None = None
    ) -> None:
        iteration = self.iter if iter is None else iter
        if (iteration + 1) % self.gather_metric_period == 0:
            try:
                SimpleTrainer.write_metrics(loss_dict, data_time, iteration, prefix)
            except Exception:
                logging.getLogger(__name__).exception('Exception in writing metrics: ')
                raise

    @staticmethod
    def write_metrics(loss_dict: Any, data_time: float, cur_iter: int, prefix: str = '') -> None:
        metrics = {key: value.detach().cpu().item() for key, value in loss_dict.items()}
        everywhere = comm.gather({**metrics, 'data_time': data_time})
        if not comm.is_main_process():
            return
        storage = get_event_storage()
        slowest = max(each.pop('data_time') for each in everywhere)
        storage.put_scalar('data_time', slowest, cur_iter=cur_iter)
        means = {key: np.mean([each[key] for each in everywhere]) for key in everywhere[0]}
        total = sum(means.values())
        if not np.isfinite(total):
            raise FloatingPointError(
                f'Loss became infinite or NaN at iteration={cur_iter}!\nloss_dict = {means}'
            )
        storage.put_scalar(f'{prefix}total_loss', total, cur_iter=cur_iter)
        if len(means) > 1:
            storage.put_scalars(cur_iter=cur_iter, **means)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), 'optimizer': self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.optimizer.load_state_dict(state['optimizer'])

    def after_train(self) -> None:
        super().after_train()
        self.concurrent_executor.shutdown(wait=True)


class AMPTrainer(SimpleTrainer):
    """Only for type checks: Detectron2's needs a GPU."""

    def run_step(self) -> None:
        assert torch.cuda.is_available(), '[AMPTrainer] CUDA is required for AMP training!'
