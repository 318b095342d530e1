# Visual Relationship Detection (arXiv 1608.00187); `gclip convert vrd` creates the files. There is
# no validation split.
dataset_type = 'SceneGraphDataset'
data_root = 'data/vrd/'
batch_size = 12
metainfo = dict(flip_predicate_pairs=[('on the left of', 'on the right of')])
scale = (1000, 600)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadSceneGraphAnnotations'),
    dict(type='Resize', scale=scale, keep_ratio=True),
    # VRD's "on the left of" and "on the right of" swap: metainfo below.
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
    sampler=dict(type='InfiniteSampler', shuffle=True),
    batch_sampler=dict(type='AspectRatioBatchSampler'),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='train.json',
        data_prefix=dict(img='sg_dataset/'),
        metainfo=metainfo,
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
        data_prefix=dict(img='sg_dataset/'),
        metainfo=metainfo,
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
)
test_evaluator = val_evaluator
