# The schedule of OpenPSG's two-stage models (arXiv 2207.11247, configs/motifs of their code): 16
# images, SGD of 0.03, 12 epochs with steps at 7 and 10, gradients clipped to norm 35.
_base_ = ['./runtime.py']

# ---- often changed: the run ----------------------------------------------------------------
optim_wrapper = dict(
    type='GClipOptimWrapper',
    optimizer=dict(type='SGD', lr=0.03, momentum=0.9, weight_decay=1e-4),
    # Weight decay would pull the log-frequencies to zero, a uniform distribution.
    paramwise_cfg=dict(custom_keys={'frequency_bias': dict(decay_mult=0.0)}),
    clip_grad=dict(type='NormClip', max_norm=35.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1.0 / 3, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=12, milestones=[7, 10], gamma=0.1),
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=12, val_interval=1)

# ---- rarely changed ------------------------------------------------------------------------
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

default_hooks = dict(
    logger=dict(interval=50),
    checkpoint=dict(interval=1, save_best='sg/mR@50', rule='greater'),
)
custom_hooks = [
    dict(type='SceneGraphCheckHook'),
    dict(type='FrequencyBiasHook', file='data/psg/frequencies.npz'),
]
auto_scale_lr = dict(enable=False, base_batch_size=16)
