"""Trains a classifier and box regressor with every rule and optimizer."""

from __future__ import annotations

import math

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.optim import build_optim_wrapper
from torch import nn
from torch.nn import functional as F

from gclip_mm import CLIPPERS, ClipConfigError

STEPS = 60
OPTIMIZERS = {
    'SGD': dict(lr=0.01, momentum=0.9),
    'Adam': dict(lr=0.003),
    'AdamW': dict(lr=0.003),
    'RMSprop': dict(lr=0.001),
}


class OneBoxDetector(BaseModel):
    """Predicts the class and the box of the one object in a picture."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(
                nn.Conv2d(8, 8, 3, padding=1),
                nn.ReLU(),
                nn.Flatten(),
                nn.Linear(512, 32),
                nn.ReLU(),
            ),
        )
        self.cls = nn.Linear(32, 3)
        self.box = nn.Linear(32, 4)

    def forward(self, inputs, labels, boxes, mode='loss'):
        features = self.body(inputs)
        return dict(
            loss_cls=F.cross_entropy(self.cls(features), labels),
            loss_bbox=F.mse_loss(self.box(features), boxes),
        )


def pictures():
    """Pictures of bars, squares and frames, with labels and boxes."""
    generator = torch.Generator().manual_seed(0)
    inputs, labels = torch.zeros(24, 1, 16, 16), torch.arange(24) % 3
    corners = torch.randint(0, 8, (24, 2), generator=generator)
    sizes = torch.randint(4, 8, (24, 2), generator=generator)
    for image, label, (x, y), (w, h) in zip(
        inputs[:, 0], labels.tolist(), corners.tolist(), sizes.tolist(), strict=True
    ):
        image[y : y + h, x : x + w] = 1
        if label == 1:
            image[y + 1 : y + h - 1, x + 1 : x + w - 1] = 0
        elif label == 2:
            image[y : y + h : 2, x : x + w] = -1
    boxes = torch.cat([corners, corners + sizes], dim=1) / 16
    return dict(inputs=inputs, labels=labels, boxes=boxes)


@pytest.mark.parametrize('optimizer', OPTIMIZERS)
@pytest.mark.parametrize('rule', list(CLIPPERS))
def test_loss_decreases_for_every_rule_and_optimizer(rule, optimizer):
    torch.manual_seed(0)
    model = OneBoxDetector()
    cfg = dict(
        type='GClipOptimWrapper',
        optimizer=dict(type=optimizer, **OPTIMIZERS[optimizer]),
        clip_grad=dict(type=rule, **CLIPPERS.get(rule).example),
    )
    if rule == 'AGC' and optimizer == 'SGD':
        cfg['optimizer']['lr'] *= 5  # its step is at most lr * clip_factor of the weight
    if rule == 'GradientStabilizer' and optimizer == 'SGD':
        # The rule discards the gradient's scale, to which SGD's step is proportional.
        with pytest.raises(ClipConfigError, match='SGD'):
            build_optim_wrapper(model, cfg)
        return
    wrapper = build_optim_wrapper(model, cfg)
    wrapper.initialize_count_status(model, 0, STEPS)
    data = pictures()
    losses = []
    for _ in range(STEPS):
        log = model.train_step(data, wrapper)
        losses.append({key: value.item() for key, value in log.items()})
    assert all(math.isfinite(value) for log in losses for value in log.values())
    for key in ('loss_cls', 'loss_bbox'):
        assert losses[-1][key] < 0.95 * losses[0][key], (key, losses[0], losses[-1])
