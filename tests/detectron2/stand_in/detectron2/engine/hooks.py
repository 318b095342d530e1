"""The hooks of the default trainer."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from .train_loop import HookBase


class IterationTimer(HookBase):
    def before_step(self) -> None:
        self._start = time.perf_counter()

    def after_step(self) -> None:
        self.trainer.storage.put_scalars(time=time.perf_counter() - self._start)


class LRScheduler(HookBase):
    def __init__(self, optimizer: Any = None, scheduler: Any = None) -> None:
        self._optimizer, self._scheduler = optimizer, scheduler

    @property
    def scheduler(self) -> Any:
        return self._scheduler or self.trainer.scheduler

    def before_train(self) -> None:
        self._optimizer = self._optimizer or self.trainer.optimizer

    def after_step(self) -> None:
        lr = self._optimizer.param_groups[0]['lr']
        self.trainer.storage.put_scalar('lr', lr, smoothing_hint=False)
        self.scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        state = self.scheduler.state_dict()
        # A function has no state that loads.
        return {key: value for key, value in state.items() if key != 'lr_lambdas'}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        lambdas = [None] * len(self.scheduler.lr_lambdas)
        self.scheduler.load_state_dict({**state, 'lr_lambdas': lambdas})


class PeriodicCheckpointer(HookBase):
    def __init__(self, checkpointer: Any, period: int) -> None:
        self._checkpointer, self._period = checkpointer, period

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self._period == 0:
            self._checkpointer.save(f'model_{self.trainer.iter:07d}', iteration=self.trainer.iter)
        if done >= self.trainer.max_iter:
            self._checkpointer.save('model_final', iteration=self.trainer.iter)


class EvalHook(HookBase):
    def __init__(self, eval_period: int, eval_function: Callable[[], Any]) -> None:
        self._period, self._function = eval_period, eval_function

    def after_train(self) -> None:
        if self.trainer.iter + 1 >= self.trainer.max_iter:
            self._function()


class PeriodicWriter(HookBase):
    def __init__(self, writers: list[Any], period: int = 20) -> None:
        self._writers, self._period = writers, period

    def after_step(self) -> None:
        is_last = self.trainer.iter == self.trainer.max_iter - 1
        if (self.trainer.iter + 1) % self._period == 0 or is_last:
            for writer in self._writers:
                writer.write()

    def after_train(self) -> None:
        for writer in self._writers:
            writer.write()
            writer.close()
