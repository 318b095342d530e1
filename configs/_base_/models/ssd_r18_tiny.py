# SSD small enough to train from scratch on a CPU in minutes: three stages of a ResNet-18 of 24
# channels (a VGG spends most of its time at full resolution), one extra layer, and boxes of 16 to
# 96 pixels. Losses, matching and mining of hard negatives are those of mmdet's ssd300. Set
# num_classes in the inheriting config.
_base_ = './r18_tiny.py'

model = dict(
    type='SingleStageDetector',
    backbone=dict(
        base_channels=24,
        num_stages=3,
        strides=(1, 2, 2),
        dilations=(1, 1, 1),
        out_indices=(1, 2),
    ),
    neck=dict(
        type='SSDNeck',
        in_channels=(48, 96),
        out_channels=(48, 96, 96),
        level_strides=(2,),
        level_paddings=(1,),
        l2_norm_scale=None,  # not needed with batch norm
        norm_cfg=dict(type='BN', requires_grad=True),
    ),
    bbox_head=dict(
        type='SSDHead',
        in_channels=(48, 96, 96),
        num_classes=80,
        anchor_generator=dict(
            type='SSDAnchorGenerator',
            scale_major=False,
            strides=[8, 16, 32],
            ratios=[[2], [2], [2]],
            min_sizes=[16, 32, 64],
            max_sizes=[32, 64, 96],
        ),
        bbox_coder=dict(
            type='DeltaXYWHBBoxCoder',
            target_means=[0.0, 0.0, 0.0, 0.0],
            target_stds=[0.1, 0.1, 0.2, 0.2],
        ),
    ),
    train_cfg=dict(
        assigner=dict(
            type='MaxIoUAssigner',
            pos_iou_thr=0.5,
            neg_iou_thr=0.5,
            min_pos_iou=0.0,
            ignore_iof_thr=-1,
            gt_max_assign_all=False,
        ),
        sampler=dict(type='PseudoSampler'),
        smoothl1_beta=1.0,
        allowed_border=-1,
        pos_weight=-1,
        neg_pos_ratio=3,
        debug=False,
    ),
    test_cfg=dict(
        nms_pre=1000,
        nms=dict(type='nms', iou_threshold=0.45),
        min_bbox_size=0,
        score_thr=0.02,
        max_per_img=100,
    ),
)
