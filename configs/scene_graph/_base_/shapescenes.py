# ShapeScenes with relations and scenes; the first run generates the pictures.
_base_ = ['../../_base_/datasets/tiny_loaders.py', './graph_steps.py']

# ---- often changed: paths and batch --------------------------------------------------------
data_root = 'data/shape_scenes_graph/'  # more pictures than in the quickstart
# Both splits need the same parameters, because they are generated together.
params = dict(num_train=2000, num_val=200, image_size=(160, 128), seed=0)
batch_size = 8

# ---- rarely changed ------------------------------------------------------------------------
dataset_type = 'ShapeScenesGraphDataset'
train_pipeline = [
    *_base_.load_steps,
    # The size of the pictures; resizing matters for custom data that inherits this config.
    dict(type='Resize', scale=params['image_size'], keep_ratio=True),
    *_base_.augment_steps,
]
test_pipeline = [
    *_base_.load_steps,
    dict(type='Resize', scale=params['image_size'], keep_ratio=True),
    _base_.pack_for_test,
]
train_dataloader = dict(
    batch_size=batch_size,
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='annotations/train.json',
        data_prefix=dict(img='train/'),
        params=params,
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
        data_prefix=dict(img='val/'),
        params=params,
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(type='SceneGraphMetric', protocol='predcls')
test_evaluator = val_evaluator
