# The small CNN on scikit-learn's digits with value clipping at 0.1: the same training as
# examples/digits_attach.py, through MMEngine. About ten seconds on one CPU core.
custom_imports = dict(imports=['gclip_mm'], allow_failed_imports=False)
default_scope = 'mmengine'

model = dict(type='SmallCNN', num_classes=10)

train_dataloader = dict(
    batch_size=64,
    num_workers=0,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='DigitsDataset', split='train'),
)
val_dataloader = dict(
    batch_size=256,
    num_workers=0,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='DigitsDataset', split='test'),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy')
test_evaluator = val_evaluator

train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=5, val_interval=1)
val_cfg = dict()
test_cfg = dict()

optim_wrapper = dict(
    type='GClipOptimWrapper',
    optimizer=dict(type='SGD', lr=0.05, momentum=0.9),
    clip_grad=dict(type='ValueClip', clip_value=0.1),
)

default_hooks = dict(
    logger=dict(type='LoggerHook', interval=10),
    checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=1),
)
randomness = dict(seed=0)
