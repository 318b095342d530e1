# R-CNN small enough to train from scratch on two CPU cores in minutes: a ResNet-18 with a quarter
# of its channels on regions of 48 pixels. Set num_classes in the inheriting config.
norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    type='RCNN',
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=1,
    ),
    backbone=dict(
        type='ResNet',
        depth=18,
        base_channels=16,
        num_stages=4,
        out_indices=(3,),
        # Stride 16, not 32: the feature map of a crop is 3 pixels wide instead of 1.5.
        strides=(1, 2, 2, 1),
        frozen_stages=-1,  # no pretrained weights, so no frozen stages
        norm_cfg=norm_cfg,
        norm_eval=False,
        style='pytorch',
        init_cfg=[
            dict(type='Kaiming', layer='Conv2d'),
            dict(type='Constant', val=1, layer='BatchNorm2d'),
        ],
    ),
    roi_head=dict(
        type='RegionRoIHead',
        bbox_roi_extractor=dict(type='ImageRegionExtractor', output_size=48, context=4),
        # Not averaged: box regression needs the position of the object in the crop.
        bbox_head=dict(
            type='Shared2FCBBoxHead',
            in_channels=128,
            fc_out_channels=128,
            roi_feat_size=3,
            num_classes=80,
            bbox_coder=dict(
                type='DeltaXYWHBBoxCoder',
                target_means=[0.0, 0.0, 0.0, 0.0],
                target_stds=[0.1, 0.1, 0.2, 0.2],
            ),
            reg_class_agnostic=False,
            loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
            loss_bbox=dict(type='MSELoss', loss_weight=1.0),
        ),
    ),
    train_cfg=dict(
        rcnn=dict(
            assigner=dict(
                type='MaxIoUAssigner',
                pos_iou_thr=0.5,
                neg_iou_thr=0.5,
                min_pos_iou=0.5,
                match_low_quality=False,
                ignore_iof_thr=-1,
            ),
            sampler=dict(
                type='RandomSampler',
                num=32,
                pos_fraction=0.25,
                neg_pos_ub=-1,
                add_gt_as_proposals=True,
            ),
            pos_weight=-1,
            debug=False,
        )
    ),
    test_cfg=dict(
        rcnn=dict(score_thr=0.05, nms=dict(type='nms', iou_threshold=0.5), max_per_img=100)
    ),
)
