# ShapeScenes with the proposals of selective search, for R-CNN and Fast R-CNN. Make the proposals
# once before training: python tools/dataset_converters/make_proposals.py CONFIG
_base_ = './tiny_loaders.py'

dataset_type = 'ShapeScenesDataset'
data_root = 'data/shape_scenes/'
scale = (160, 128)
# Both splits are drawn together, so both data sets must have the same parameters.
params = dict(num_train=800, num_val=200, image_size=scale, seed=0)
batch_size = 4

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadProposals', num_max_proposals=2000),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='ProposalBroadcaster',
        transforms=[
            dict(type='Resize', scale=scale, keep_ratio=True),
            dict(type='RandomFlip', prob=0.5),
        ],
    ),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadProposals', num_max_proposals=2000),
    dict(
        type='ProposalBroadcaster', transforms=[dict(type='Resize', scale=scale, keep_ratio=True)]
    ),
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
        proposal_file='proposals/selective_search_train.pkl',
        filter_cfg=dict(filter_empty_gt=True, min_size=16),
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
        proposal_file='proposals/selective_search_val.pkl',
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='CocoMetric', ann_file=data_root + 'annotations/val.json', metric='bbox')
test_evaluator = val_evaluator
