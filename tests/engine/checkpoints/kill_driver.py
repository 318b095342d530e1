"""Trains the toy task in processes that can be killed: ``python kill_driver.py``.

Reads one job a line from its input, a JSON object, and answers with the exit status of the process
that ran it (-9: killed by SIGKILL). The packages are imported once and every job is a fork, which
takes a tenth of the time of a separate process.

A job: ``work_dir``, ``clip_grad``, ``changes`` of the config, ``find`` (resume from what
``find_resumable`` says), and ``kill``: None, or ``[where, iteration]``. ``where`` is ``forward``,
``step`` (between the gradients' clipping and the optimizer), ``after_step``, or ``write`` (half of
a checkpoint has been written; ``iteration`` counts the checkpoints).
"""

from __future__ import annotations

import builtins
import gc
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[3])]

import mmengine.config.config as config_module  # noqa: E402
import mmengine.fileio.backends.local_backend as stock_backend  # noqa: E402
import torch  # noqa: E402
import torch._dynamo  # noqa: E402  the optimizers import it, which takes a second
from mmengine.hooks import Hook  # noqa: E402
from mmengine.runner import Runner  # noqa: E402
from toy_task import as_it_is, toy_config  # noqa: E402

from gclip_mm.engine.checkpoints import atomic_backend, resume  # noqa: E402


def die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class KillHook(Hook):
    def __init__(self, where: str, at: int) -> None:
        self.where = where
        self.at = at

    def before_train(self, runner: Runner) -> None:
        if self.where == 'write':
            kill_in_write(self.at)

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        if runner.iter != self.at:
            return
        if self.where == 'forward':
            runner.model.head.register_forward_hook(die)
        elif self.where == 'step':
            runner.optim_wrapper.optimizer.register_step_pre_hook(die)
        elif self.where == 'after_step':
            runner.optim_wrapper.optimizer.register_step_post_hook(die)


def kill_in_write(at: int) -> None:
    """Exit when half of the ``at``-th checkpoint (from 0) is written."""
    count = iter(range(at + 1))

    class Half:
        def __init__(self, file: Any) -> None:
            self.file = file

        def __enter__(self) -> Half:
            return self

        def __exit__(self, *_: Any) -> None:
            self.file.close()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def write(self, data: bytes) -> None:
            if next(count) < at:
                self.file.write(data)
                return
            self.file.write(data[: len(data) // 2])
            self.file.flush()
            die()

    def half_open(path: Any, mode: str = 'r', *args: Any, **kwargs: Any) -> Any:
        file = builtins.open(path, mode, *args, **kwargs)  # noqa: SIM115
        return Half(file) if mode == 'wb' and '.pth' in str(path) else file

    for module in (atomic_backend, stock_backend):
        module.open = half_open


def work(job: dict) -> None:
    torch.set_num_threads(1)
    config_module.FormatCode = as_it_is
    cfg = toy_config(job['work_dir'], job['clip_grad'], **job.get('changes', {}))
    if job.get('find'):
        cfg.resume, cfg.load_from = True, resume.find_resumable(cfg.work_dir)
    runner = Runner.from_cfg(cfg)
    if job.get('kill'):
        runner.register_hook(KillHook(*job['kill']))
    runner.train()


def main() -> None:
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)
    # The forks share the imported modules.
    gc.freeze()
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            try:
                work(json.loads(line))
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(status, file=answers, flush=True)


if __name__ == '__main__':
    main()
