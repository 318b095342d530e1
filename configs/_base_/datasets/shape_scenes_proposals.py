# ShapeScenes with the proposals of selective search, for R-CNN and Fast R-CNN. Make the proposals
# once before training: python tools/dataset_converters/make_proposals.py CONFIG
_base_ = ['./shape_scenes.py', './proposal_steps.py']

# ---- often changed: the batch --------------------------------------------------------------
batch_size = 4

# ---- rarely changed ------------------------------------------------------------------------
scale = _base_.params.image_size  # the pictures keep their size
resize = dict(type='Resize', scale=_base_.params.image_size, keep_ratio=True)
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
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
train_dataloader = dict(
    batch_size=batch_size,
    dataset=dict(
        proposal_file='proposals/selective_search_train.pkl',
        filter_cfg=dict(filter_empty_gt=True, min_size=16),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=batch_size,
    dataset=dict(proposal_file='proposals/selective_search_val.pkl', pipeline=test_pipeline),
)
test_dataloader = val_dataloader
