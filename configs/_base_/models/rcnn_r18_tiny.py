# R-CNN small enough to train from scratch on two CPU cores in minutes: a ResNet-18 with a quarter
# of its channels on regions of 48 pixels. Set num_classes in the inheriting config.
_base_ = './r18_tiny.py'

model = dict(
    type='RCNN',
    data_preprocessor=dict(pad_size_divisor=1),
    backbone=dict(
        out_indices=(3,),
        # Stride 16, not 32: the feature map of a crop is 3 pixels wide instead of 1.5.
        strides=(1, 2, 2, 1),
    ),
    roi_head=dict(
        type='RegionRoIHead',
        # Crops of 48 pixels, 4 of them on each side around the region.
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
                num=32,  # crops of each image: each is a pass of the whole network
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
