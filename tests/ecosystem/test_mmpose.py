"""A tiny model of MMPose trains on drawn data, through every door.

Needs the package, which ``make ecosystem`` puts beside the environment, with NumPy 1: the wheels of
xtcocotools were built for it.
"""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from tests.ecosystem.doors import Doors, needs

needs('torchvision', 'mmpose.models', 'mmpose.visualization')

CONFIG = """
default_scope = 'mmpose'
codec = dict(type='MSRAHeatmap', input_size=(64, 64), heatmap_size=(16, 16), sigma=1)
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='BaseCocoStyleDataset',
        data_root={root!r},
        ann_file='keypoints.json',
        data_prefix=dict(img='images'),
        metainfo=dict(
            dataset_name='squares',
            keypoint_info={{
                0: dict(name='top', id=0, color=[255, 0, 0], type='', swap=''),
                1: dict(name='bottom', id=1, color=[0, 255, 0], type='', swap=''),
            }},
            skeleton_info={{}},
            joint_weights=[1.0, 1.0],
            sigmas=[0.1, 0.1],
        ),
        pipeline=[
            dict(type='LoadImage'),
            dict(type='GetBBoxCenterScale'),
            dict(type='RandomFlip', prob=0.0),
            dict(type='RandomBBoxTransform'),
            dict(type='TopdownAffine', input_size=codec['input_size']),
            dict(type='GenerateTarget', encoder=codec),
            dict(type='PackPoseInputs'),
        ],
    ),
)
model = dict(
    type='TopdownPoseEstimator',
    data_preprocessor=dict(type='PoseDataPreprocessor', mean=[128] * 3, std=[64] * 3),
    backbone=dict(type='ResNet', depth=18, base_channels=8),
    head=dict(
        type='HeatmapHead', in_channels=64, out_channels=2, deconv_out_channels=(8, 8, 8),
        deconv_kernel_sizes=(4, 4, 4),
        loss=dict(type='KeypointMSELoss', use_target_weight=True, loss_weight=100.0),
        decoder=codec),
)
"""


@pytest.fixture(scope='module')
def settings(tmp_path_factory) -> str:
    """A config for eight images of 64 x 64 with a bright square, two corners of it annotated."""
    folder = tmp_path_factory.mktemp('drawn')
    random = np.random.default_rng(0)
    (folder / 'images').mkdir()
    images, annotations = [], []
    for i in range(8):
        image = random.integers(0, 80, (64, 64, 3), dtype=np.uint8)
        x, y = (int(value) for value in random.integers(4, 36, 2))
        image[y : y + 20, x : x + 20] += 120
        cv2.imwrite(str(folder / 'images' / f'{i}.png'), image)
        images.append(dict(id=i, file_name=f'{i}.png', width=64, height=64))
        corners = [x, y, 2, x + 20, y + 20, 2]
        annotations.append(
            dict(
                id=i,
                image_id=i,
                category_id=1,
                bbox=[x - 4, y - 4, 28, 28],
                area=784,
                iscrowd=0,
                keypoints=corners,
                num_keypoints=2,
            )
        )
    categories = [dict(id=1, name='square', keypoints=['top', 'bottom'], skeleton=[])]
    content = dict(info={}, images=images, annotations=annotations, categories=categories)
    (folder / 'keypoints.json').write_text(json.dumps(content))
    return CONFIG.format(root=str(folder))


class TestDoors(Doors):
    pass
