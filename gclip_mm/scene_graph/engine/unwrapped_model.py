"""Access to the model behind a distributed wrapper."""

from __future__ import annotations

from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn


def unwrapped_model(runner: Runner) -> nn.Module:
    """The runner's model, without the distributed wrapper if there is one."""
    return runner.model.module if is_model_wrapper(runner.model) else runner.model
