# Visual Genome VG150; tools/dataset_converters/vg150.py creates the files.
_base_ = './photo_graphs.py'

# ---- often changed: paths and batch --------------------------------------------------------
data_root = 'data/vg150/'
batch_size = 12  # of each GPU; the schedule is for this many images in all
scale = (1000, 600)

# ---- rarely changed ------------------------------------------------------------------------
dataset_type = 'SceneGraphDataset'
train_pipeline = [
    *_base_.load_steps,
    dict(type='Resize', scale=scale, keep_ratio=True),
    # VG150 has no predicate with left or right, so horizontal flips do not change predicates.
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSceneGraphInputs'),
]
test_pipeline = [
    *_base_.load_steps,
    dict(type='Resize', scale=scale, keep_ratio=True),
    _base_.pack_for_test,
]
images = dict(img='VG_100K/')
train_dataloader = dict(
    batch_size=batch_size,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(data_root=data_root, data_prefix=images, pipeline=train_pipeline),
)
val_dataloader = dict(
    dataset=dict(
        data_root=data_root, ann_file='val.json', data_prefix=images, pipeline=test_pipeline
    )
)
test_dataloader = dict(
    dataset=dict(
        data_root=data_root, ann_file='test.json', data_prefix=images, pipeline=test_pipeline
    )
)

# The annotation files contain the metric convention of the literature.
val_evaluator = dict(
    type='SceneGraphMetric',
    protocol='predcls',
    train_ann_file=data_root + 'train.json',
    predicate_groups='thirds',  # head, body and tail
)
test_evaluator = val_evaluator
