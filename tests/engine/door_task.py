"""One training run, with any of the entry points to clipping or with stock MMEngine."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import HOOKS, MODELS
from mmengine.runner import Runner
from torch import Tensor, nn

from gclip_mm import attach
from tests.engine.toy_task import toy_config

DOORS = ('wrapper', 'hook', 'attach')


@MODELS.register_module()
class DoorNet(BaseModel):
    """A model with every kind of unit that AGC distinguishes, for the toy task."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(1, 4, 2, padding=1), nn.GroupNorm(2, 4), nn.Tanh())
        self.neck = nn.ConvTranspose2d(4, 6, 2, groups=2)
        self.head = nn.Linear(6, 1)

    def forward(self, inputs: list, data_samples: list, mode: str = 'tensor') -> Any:
        x = torch.stack([torch.as_tensor(item) for item in inputs]).view(-1, 1, 2, 3)
        out = self.head(self.neck(self.backbone(x)).mean((2, 3)))
        target = torch.stack([torch.as_tensor(sample.target) for sample in data_samples])
        return {'loss': (out - target).square().mean()} if mode == 'loss' else out


@HOOKS.register_module()
class AttachHook(Hook):
    """Calls ``attach`` in an MMEngine run, as a plain loop does before it starts."""

    def __init__(self, clip_grad: dict) -> None:
        self.clip_grad = clip_grad

    def before_run(self, runner: Runner) -> None:
        self.handle = attach(runner.optim_wrapper.optimizer, self.clip_grad, model=runner.model)
        self.log: list[dict[str, float]] = []

    def after_train_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        self.log.append(self.handle.stats())


def door_config(
    door: str, work_dir: Path | str, clip_grad: dict | None, optimizer: dict, **changes: Any
) -> Config:
    """A config of 12 iterations.

    Args:
        door: ``wrapper``, ``hook``, ``attach``, or ``stock`` for MMEngine's own wrapper.
        work_dir: folder of the run; another one for each run.
        clip_grad: the rule.
        optimizer: the optimizer.
        **changes: see :func:`toy_config`; ``wrapper`` holds more keys of the optimizer wrapper,
            ``resumable`` has all random generators saved.
    """
    hooks: list[dict] = []
    if changes.pop('resumable', False):
        # The data use NumPy's generator, which MMEngine alone does not resume.
        hooks.append(dict(type='GClipRNGStateHook'))
    wrapper: dict[str, Any] = dict(_delete_=True, type='OptimWrapper', optimizer=optimizer)
    wrapper.update(changes.pop('wrapper', {}))
    if door == 'wrapper':
        wrapper.update(type='GClipOptimWrapper', clip_grad=clip_grad)
    elif door == 'hook':
        hooks.append(dict(type='GClipHook', clip_grad=clip_grad))
    elif door == 'attach':
        hooks.append(dict(type='AttachHook', clip_grad=clip_grad))
    elif door == 'stock':
        # Stock MMEngine removes keys from the dict.
        wrapper.update(clip_grad=copy.deepcopy(clip_grad))
    defaults: dict[str, Any] = dict(
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=12),
        default_hooks__checkpoint=None,
    )
    return toy_config(
        str(work_dir),
        model=dict(_delete_=True, type='DoorNet'),
        optim_wrapper=wrapper,
        custom_hooks=hooks,
        **{**defaults, **changes},
    )


def run_door(
    door: str, work_dir: Path | str, clip_grad: dict | None, optimizer: dict, **changes: Any
) -> Runner:
    """Train with :func:`door_config`; returns the runner."""
    runner = Runner.from_cfg(door_config(door, work_dir, clip_grad, optimizer, **changes))
    runner.train()
    return runner


def weights(runner: Runner) -> dict[str, Tensor]:
    """The parameters and buffers of the model."""
    return {key: value.clone() for key, value in runner.model.state_dict().items()}


def read_scalars(work_dir: Path | str) -> list[dict[str, Any]]:
    """The lines of the only ``scalars.json`` under a work dir."""
    (path,) = Path(work_dir).rglob('scalars.json')
    return [json.loads(line) for line in path.read_text().splitlines()]


def history(runner: Runner, key: str) -> list[float]:
    """All values of a scalar of the message hub."""
    return runner.message_hub.get_scalar(key).data[0].tolist()
