# The schedule of Tang et al. (arXiv 2002.11949, e2e_relation_X_101_32_8_FPN_1x.yaml of their code):
# 12 images, SGD of 0.01 for each image, 40000 iterations, gradients clipped to norm 5.0. There the
# learning rate decays on validation plateaus, at most three times; here at fixed iterations.
_base_ = ['./runtime.py']

# ---- often changed: the run ----------------------------------------------------------------
max_iters = 40000
optim_wrapper = dict(
    type='GClipOptimWrapper',
    optimizer=dict(type='SGD', lr=0.12, momentum=0.9, weight_decay=1e-4),
    # Weight decay would pull the log-frequencies to zero, a uniform distribution.
    paramwise_cfg=dict(custom_keys={'frequency_bias': dict(decay_mult=0.0)}),
    clip_grad=dict(type='NormClip', max_norm=5.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', by_epoch=False, milestones=[24000, 34000], gamma=0.1),
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=4000)

# ---- rarely changed ------------------------------------------------------------------------
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

default_hooks = dict(
    logger=dict(interval=50),
    checkpoint=dict(by_epoch=False, interval=4000, save_best='sg/mR@50', rule='greater'),
)
log_processor = dict(by_epoch=False)
custom_hooks = [
    dict(type='SceneGraphCheckHook'),
    dict(type='FrequencyBiasHook', file='data/vg150/frequencies.npz'),
]
auto_scale_lr = dict(enable=False, base_batch_size=12)
