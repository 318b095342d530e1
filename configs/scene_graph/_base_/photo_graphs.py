# What the data sets of photos with annotated graphs share: loaders and pipelines. Set paths and
# batch_size in the inheriting config.
_base_ = './graph_steps.py'

# ---- often changed: the size of the pictures -----------------------------------------------
scale = (1000, 600)  # the longer and the shorter side, at most

# ---- rarely changed ------------------------------------------------------------------------
dataset_type = 'SceneGraphDataset'
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
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    # Pictures of one shape share a batch, so that less of it is padding.
    batch_sampler=dict(type='AspectRatioBatchSampler'),
    dataset=dict(
        type=dataset_type,
        ann_file='train.json',
        filter_cfg=dict(filter_empty_gt=True, filter_empty_relations=True),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type=dataset_type, test_mode=True, pipeline=test_pipeline),
)
test_dataloader = val_dataloader

# The annotation files contain the metric convention of the literature.
val_evaluator = dict(type='SceneGraphMetric', protocol='predcls')
test_evaluator = val_evaluator
