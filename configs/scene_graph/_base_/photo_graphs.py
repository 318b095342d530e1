# What the data sets of photos with annotated graphs share: loaders, and the steps of the pipelines.
# Set paths, batch_size and the pipelines, with a Resize between these steps, in the heir.
load_steps = [
    dict(type='LoadImageFromFile'),
    # Before all transforms that move pixels: PredCls and SGCls use the ground-truth boxes.
    dict(type='LoadSceneGraphAnnotations'),
]
pack_for_test = dict(
    type='PackSceneGraphInputs',
    meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
)
train_dataloader = dict(
    num_workers=4,
    persistent_workers=True,
    # Pictures of one shape share a batch, so that less of it is padding.
    batch_sampler=dict(type='AspectRatioBatchSampler'),
    dataset=dict(
        type='SceneGraphDataset',
        ann_file='train.json',
        filter_cfg=dict(filter_empty_gt=True, filter_empty_relations=True),
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='SceneGraphDataset', test_mode=True),
)
test_dataloader = val_dataloader
