# Faster R-CNN on playing cards. The MobileNetV2 is pretrained, and its batch norms stay frozen.
# The photos and the weights are named on the command line (results/auto/README.md).
_base_ = '../../../configs/bccd/faster-rcnn_p3_tiny_bccd.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='MobileNetV2',
        out_indices=(2, 4, 6),
        frozen_stages=2,
        norm_eval=True,
        init_cfg=dict(type='Pretrained', checkpoint='data/mobilenet_v2_imagenet_mmdet.pth'),
    ),
    neck=dict(in_channels=[32, 96, 320], start_level=0),
    roi_head=dict(bbox_head=dict(num_classes=6)),
)
classes = ('ace', 'jack', 'king', 'nine', 'queen', 'ten')
size = (192, 144)
photos = dict(
    type='CocoDataset',
    data_root='data/cards/',
    metainfo=dict(classes=classes),
)
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        **photos,
        ann_file='train.json',
        data_prefix=dict(img='train/'),
        filter_cfg=dict(filter_empty_gt=True, min_size=2),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True),
            dict(type='Resize', scale=size, keep_ratio=True),
            dict(type='RandomFlip', prob=0.5),
            dict(type='PackDetInputs'),
        ],
    )
)
val_dataloader = dict(
    dataset=dict(
        _delete_=True,
        **photos,
        ann_file='test.json',
        data_prefix=dict(img='test/'),
        test_mode=True,
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='Resize', scale=size, keep_ratio=True),
            dict(type='LoadAnnotations', with_bbox=True),
            dict(
                type='PackDetInputs',
                meta_keys=(
                    'img_id',
                    'img_path',
                    'ori_shape',
                    'img_shape',
                    'scale_factor',
                    'instances',
                ),
            ),
        ],
    )
)
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(lr=0.01))
train_cfg = dict(max_iters=120, val_interval=120)
param_scheduler = [_base_.param_scheduler[0], dict(_base_.param_scheduler[1], end=120)]
