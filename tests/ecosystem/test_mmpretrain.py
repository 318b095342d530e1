"""A tiny model of MMPretrain trains on drawn data, through every door.

Needs the package, which ``make ecosystem`` puts beside the environment, with a torchvision that was
built for the installed PyTorch.
"""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from tests.ecosystem.doors import Doors, needs

needs('torchvision', 'mmpretrain.models', 'mmpretrain.datasets')

CONFIG = """
default_scope = 'mmpretrain'
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='CustomDataset',
        data_root={root!r},
        pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')],
    ),
)
model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(mean=[128] * 3, std=[64] * 3, num_classes=2),
    backbone=dict(
        type='ResNet_CIFAR', depth=18, base_channels=8, stem_channels=8, out_indices=(3,)),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead', num_classes=2, in_channels=64,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0)),
)
"""


@pytest.fixture(scope='module')
def settings(tmp_path_factory) -> str:
    """A config for two classes of images of 32 x 32, dark and bright ones."""
    folder = tmp_path_factory.mktemp('drawn')
    random = np.random.default_rng(0)
    for name, low in (('bright', 120), ('dark', 0)):
        (folder / name).mkdir()
        for i in range(6):
            image = random.integers(low, low + 130, (32, 32, 3), dtype=np.uint8)
            cv2.imwrite(str(folder / name / f'{i}.png'), image)
    return CONFIG.format(root=str(folder))


class TestDoors(Doors):
    pass
