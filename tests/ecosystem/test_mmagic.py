"""A GAN of MMagic, with an optimizer each for generator and discriminator, through every door.

Needs the package, which ``make ecosystem`` puts beside the environment, with NumPy 1, which it was
written for, and a torchvision that was built for the installed PyTorch.
"""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from tests.ecosystem.doors import Doors, needs

needs('torchvision', 'mmagic.models', 'mmagic.visualization')

CONFIG = """
default_scope = 'mmagic'
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='BasicImageDataset',
        data_root={root!r},
        data_prefix=dict(gt=''),
        pipeline=[dict(type='LoadImageFromFile', key='gt'), dict(type='PackInputs')],
    ),
)
model = dict(
    type='LSGAN',
    noise_size=8,
    data_preprocessor=dict(type='DataPreprocessor'),
    generator=dict(
        type='LSGANGenerator', output_scale=16, input_scale=4, base_channels=16, noise_size=8),
    discriminator=dict(
        type='LSGANDiscriminator', input_scale=16, output_scale=4, base_channels=8),
)
"""


@pytest.fixture(scope='module')
def settings(tmp_path_factory) -> str:
    """A config for eight images of 16 x 16 with a bright square."""
    folder = tmp_path_factory.mktemp('drawn')
    random = np.random.default_rng(0)
    for i in range(8):
        image = random.integers(0, 80, (16, 16, 3), dtype=np.uint8)
        x, y = random.integers(0, 9, 2)
        image[y : y + 7, x : x + 7] += 120
        cv2.imwrite(str(folder / f'{i}.png'), image)
    return CONFIG.format(root=str(folder))


class TestDoors(Doors):
    members = ('generator', 'discriminator')
    constructor = 'MultiOptimWrapperConstructor'
