# BCCD: 364 microscope photos (640x480) of blood, with red cells, white cells and platelets, in VOC
# layout. Splits as published: train 205, val 87, test 72.
_base_ = './tiny_loaders.py'

# ---- often changed: paths and batch --------------------------------------------------------
data_root = 'data/BCCD/'
scale = (256, 192)
batch_size = 8

# ---- rarely changed ------------------------------------------------------------------------
dataset_type = 'BCCDDataset'
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='PackDetInputs',
        # Without a COCO JSON, CocoMetric builds its ground truth from `instances`.
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'instances'),
    ),
]
train_dataloader = dict(
    batch_size=batch_size,
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='ImageSets/Main/train.txt',
        # One training box is 0 pixels wide; its regression target would be the log of 0.
        filter_cfg=dict(filter_empty_gt=True, bbox_min_size=2),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=batch_size,
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='ImageSets/Main/val.txt',
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='CocoMetric', metric='bbox', classwise=True)
test_evaluator = val_evaluator
