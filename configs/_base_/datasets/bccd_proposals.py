# BCCD with proposals, for R-CNN and Fast R-CNN. Make the proposals once before training:
#   python tools/dataset_converters/make_proposals.py CONFIG --method felzenszwalb --max-width 320
_base_ = ['./tiny_loaders.py', './proposal_steps.py']

# ---- often changed: paths and batch --------------------------------------------------------
data_root = 'data/'  # proposals are stored beside data/BCCD, which may be a link to a shared copy
scale = (256, 192)
batch_size = 4

# ---- rarely changed ------------------------------------------------------------------------
dataset_type = 'BCCDDataset'
resize = dict(type='Resize', scale=scale, keep_ratio=True)
train_pipeline = [
    *_base_.load_for_training,
    dict(type='ProposalBroadcaster', transforms=[resize, _base_.flip]),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    *_base_.load_proposals,
    dict(type='ProposalBroadcaster', transforms=[resize]),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'instances'),
    ),
]
train_dataloader = dict(
    batch_size=batch_size,
    batch_sampler=dict(type='AspectRatioBatchSampler'),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='BCCD/ImageSets/Main/train.txt',
        data_prefix=dict(sub_data_root='BCCD/'),
        proposal_file='proposals/bccd_felzenszwalb_train.pkl',
        filter_cfg=dict(filter_empty_gt=True, min_size=32, bbox_min_size=8),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=batch_size,
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='BCCD/ImageSets/Main/val.txt',
        data_prefix=dict(sub_data_root='BCCD/'),
        proposal_file='proposals/bccd_felzenszwalb_val.pkl',
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = [
    dict(type='CocoMetric', metric='bbox'),
    dict(type='VOCMetric', metric='mAP', eval_mode='area'),
]
test_evaluator = val_evaluator
