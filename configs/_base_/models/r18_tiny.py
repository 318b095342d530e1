# Pixels and backbone of the tiny detectors: a ResNet-18 of quarter width, trained from scratch.
model = dict(
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        # mmdet's numbers for RGB pictures
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=32,
    ),
    backbone=dict(
        type='ResNet',
        depth=18,
        base_channels=16,
        num_stages=4,
        out_indices=(0, 1, 2, 3),
        frozen_stages=-1,  # no pretrained weights, so no frozen stages
        norm_cfg=dict(type='BN', requires_grad=True),
        norm_eval=False,  # statistics of the run, not those of a pretraining
        style='pytorch',
        init_cfg=[
            dict(type='Kaiming', layer='Conv2d'),
            dict(type='Constant', val=1, layer='BatchNorm2d'),
        ],
    ),
)
