# Panoptic Scene Graphs (arXiv 2207.11247) with boxes; tools/dataset_converters/psg.py creates the
# files.
dataset_type = 'SceneGraphDataset'
data_root = 'data/psg/'
batch_size = 16
scale = (1333, 800)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadSceneGraphAnnotations'),
    dict(type='Resize', scale=scale, keep_ratio=True),
    # PSG has no predicate with left or right, so horizontal flips do not change predicates.
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
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    batch_sampler=dict(type='AspectRatioBatchSampler'),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='train.json',
        data_prefix=dict(img='coco/'),
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
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='test.json',
        data_prefix=dict(img='coco/'),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader

# The annotation files contain the metric convention of the literature.
val_evaluator = dict(
    type='SceneGraphMetric',
    protocol='predcls',
    train_ann_file=data_root + 'train.json',
    predicate_groups='thirds',  # head, body and tail
)
test_evaluator = val_evaluator
