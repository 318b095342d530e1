"""Parameters and gradients to measure with: those of an mmdet config, or many small tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

SIDE = 256  # of the drawn image that gives real gradients, in pixels


def build_model(config: str) -> nn.Module:
    """The model of an mmdet config with random weights; nothing is downloaded."""
    from mmdet.registry import MODELS
    from mmdet.utils import register_all_modules
    from mmengine.config import Config

    from ...engine.configs import find_config

    register_all_modules()
    cfg = Config.fromfile(find_config(config)).model
    for part in (cfg, cfg.get('backbone', {})):
        part.pop('init_cfg', None)
    return MODELS.build(cfg)


def many_tensors(count: int, numel: int) -> nn.Module:
    """A model of nothing but parameters of one size."""
    model = nn.Module()
    model.weights = nn.ParameterList(nn.Parameter(torch.randn(numel)) for _ in range(count))
    return model


def random_gradients(params: list[nn.Parameter]) -> None:
    """Set the gradient of each parameter to standard normal numbers."""
    for p in params:
        p.grad = torch.randn_like(p)


def model_gradients(model: nn.Module, params: list[nn.Parameter]) -> None:
    """Set the gradients of one backward pass of a detector, over one image with random boxes.

    Raises:
        ValueError: a gradient is not finite.
    """
    from mmdet.testing import demo_mm_inputs

    model.train()
    batch = demo_mm_inputs(1, [[3, SIDE, SIDE]], num_classes=20, with_mask=True)
    detector: Any = model
    batch = detector.data_preprocessor(batch, True)
    losses = detector.loss(batch['inputs'], batch['data_samples'])
    detector.parse_losses(losses)[0].backward()
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in params]
    for p, grad in zip(params, grads, strict=True):
        p.grad = grad
    if not all(grad.isfinite().all() for grad in grads):
        raise ValueError('--gradients model: the backward pass of this config is not finite')
