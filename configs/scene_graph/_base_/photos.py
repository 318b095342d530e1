# Your own photos, at 256 pixels so that a CPU can train on them. `gclip convert table` creates the
# files. Everything that depends on your data is in the inheriting config; see ../photos/README.md.
dataset_type = 'SceneGraphDataset'
data_root = 'data/mine/'
images = 'images/'
num_workers = 0  # photos of this number are read faster than worker processes start
batch_size = 8
scale = (256, 256)  # the longer side

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadSceneGraphAnnotations'),
    dict(type='Resize', scale=scale, keep_ratio=True),
    # Mirrored photos, and the predicates of flip_predicate_pairs swapped.
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSceneGraphInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    # Before all transforms that move pixels: PredCls and SGCls use the ground-truth boxes.
    dict(type='LoadSceneGraphAnnotations'),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(
        type='PackSceneGraphInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
train_dataloader = dict(
    batch_size=batch_size,
    num_workers=num_workers,
    persistent_workers=num_workers > 0,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='train.json',
        data_prefix=dict(img=images),
        filter_cfg=dict(filter_empty_gt=True),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=batch_size,
    num_workers=num_workers,
    persistent_workers=num_workers > 0,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='val.json',
        data_prefix=dict(img=images),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(type='SceneGraphMetric', protocol='predcls')
test_evaluator = val_evaluator
