# Your own photos, at 256 pixels so that a CPU can train on them. `gclip convert table` creates the
# files. Everything that depends on your data is in the inheriting config; see ../photos/README.md.
_base_ = './graph_steps.py'

# ---- often changed: paths, batch and size --------------------------------------------------
dataset_type = 'SceneGraphDataset'
data_root = 'data/mine/'
images = 'images/'
num_workers = 0  # photos of this number are read faster than worker processes start
batch_size = 8
scale = (256, 256)  # the longer side

# ---- rarely changed ------------------------------------------------------------------------
train_pipeline = [
    *_base_.load_steps,
    dict(type='Resize', scale=scale, keep_ratio=True),
    *_base_.augment_steps,
]
test_pipeline = [
    *_base_.load_steps,
    dict(type='Resize', scale=scale, keep_ratio=True),
    _base_.pack_for_test,
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
