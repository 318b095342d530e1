# ShapeScenes: pictures of colored shapes, drawn on first use.
_base_ = './tiny_loaders.py'

# ---- often changed: paths and batch --------------------------------------------------------
data_root = 'data/shape_scenes/'
# Both splits are drawn together, so both data sets must have the same parameters.
params = dict(num_train=800, num_val=200, image_size=(160, 128), seed=0)
batch_size = 8

# ---- rarely changed ------------------------------------------------------------------------
dataset_type = 'ShapeScenesDataset'
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    # Resize to the size of the images: later transforms need a scale factor.
    dict(type='Resize', scale=params['image_size'], keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
train_dataloader = dict(
    batch_size=batch_size,
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='annotations/train.json',
        params=params,
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=batch_size,
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='annotations/val.json',
        params=params,
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='CocoMetric', ann_file=data_root + 'annotations/val.json', metric='bbox')
test_evaluator = val_evaluator
