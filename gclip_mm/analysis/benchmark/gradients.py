"""Parameters and gradients to measure with: those of an mmdet config, or many small tensors."""

from __future__ import annotations

import sys

import torch
from torch import nn

SIDE = 256  # of the drawn image that gives real gradients, in pixels


def build_model(config: str) -> nn.Module:
    """The model of an mmdet config with random weights; nothing is downloaded."""
    from mmdet.registry import MODELS
    from mmdet.utils import register_all_modules
    from mmengine.config import Config

    from gclip_mm.engine.launch import find_config

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
    """A gradient of standard normal numbers for each parameter."""
    for p in params:
        p.grad = torch.randn_like(p)


def model_gradients(model: nn.Module, params: list[nn.Parameter]) -> None:
    """The gradients of one backward pass of a detector over one drawn image with random boxes."""
    from mmdet.testing import demo_mm_inputs

    model.train()
    batch = demo_mm_inputs(1, [[3, SIDE, SIDE]], num_classes=20, with_mask=True)
    batch = model.data_preprocessor(batch, True)
    losses = model.loss(batch['inputs'], batch['data_samples'])
    model.parse_losses(losses)[0].backward()
    for p in params:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    if not all(torch.isfinite(p.grad).all() for p in params):
        sys.exit('--gradients model: the backward pass of this config is not finite')
