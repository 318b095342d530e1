"""A tiny model of MMSegmentation trains on drawn data, through every door.

Needs the package, which ``make ecosystem`` puts beside the environment.
"""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from tests.ecosystem.doors import Doors, needs

needs('mmseg.models')

CONFIG = """
default_scope = 'mmseg'
pipeline = [
    dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='BaseSegDataset',
        data_root={root!r},
        data_prefix=dict(img_path='images', seg_map_path='masks'),
        img_suffix='.png',
        metainfo=dict(classes=('ground', 'square')),
        pipeline=pipeline,
    ),
)
norm = dict(type='BN')
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor', mean=[128] * 3, std=[64] * 3, size=(48, 48)),
    backbone=dict(
        type='ResNet', depth=18, base_channels=8, norm_cfg=norm, num_stages=4, out_indices=(3,)),
    decode_head=dict(
        type='FCNHead', in_channels=64, channels=8, num_convs=1, dropout_ratio=0, num_classes=2,
        norm_cfg=norm, loss_decode=dict(type='CrossEntropyLoss')),
)
"""


@pytest.fixture(scope='module')
def settings(tmp_path_factory) -> str:
    """A config for eight images of 48 x 48 with a bright square, and their masks."""
    folder = tmp_path_factory.mktemp('drawn')
    random = np.random.default_rng(0)
    for name in ('images', 'masks'):
        (folder / name).mkdir()
    for i in range(8):
        image = random.integers(0, 80, (48, 48, 3), dtype=np.uint8)
        mask = np.zeros((48, 48), np.uint8)
        x, y = random.integers(0, 28, 2)
        image[y : y + 20, x : x + 20] += 120
        mask[y : y + 20, x : x + 20] = 1
        cv2.imwrite(str(folder / 'images' / f'{i}.png'), image)
        cv2.imwrite(str(folder / 'masks' / f'{i}.png'), mask)
    return CONFIG.format(root=str(folder))


class TestDoors(Doors):
    pass
