# SSD on playing cards. The VGG16 is pretrained and has no batch norm; its two last layers are new.
# The photos and the weights are named on the command line (results/auto/README.md).
_base_ = './faster-rcnn_mobilenetv2_cards.py'
head = dict(
    type='SSDHead',
    in_channels=(512, 1024, 256),
    num_classes=6,
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
)
model = dict(
    _delete_=True,
    type='SingleStageDetector',
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[103.939, 116.779, 123.68],
        std=[1.0, 1.0, 1.0],
        bgr_to_rgb=False,
        pad_size_divisor=32,
    ),
    backbone=dict(
        type='SSDVGG',
        depth=16,
        with_last_pool=False,
        ceil_mode=True,
        out_indices=(3, 4),
        out_feature_indices=(22, 34),
        init_cfg=dict(type='Pretrained', checkpoint='data/vgg16_imagenet_caffe_bgr255.pth'),
    ),
    neck=dict(
        type='SSDNeck',
        in_channels=(512, 1024),
        out_channels=(512, 1024, 256),
        level_strides=(2,),
        level_paddings=(1,),
        l2_norm_scale=20,
    ),
    bbox_head=head,
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
train_dataloader = dict(batch_size=4)
