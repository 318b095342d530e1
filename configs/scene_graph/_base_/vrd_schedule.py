# The schedule of VG150, shortened: VRD has 4000 training pictures, a fifteenth of VG150's.
_base_ = ['./vg150_schedule.py']

max_iters = 6000
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', by_epoch=False, milestones=[3600, 5100], gamma=0.1),
]
train_cfg = dict(max_iters=max_iters, val_interval=1000)
default_hooks = dict(
    checkpoint=dict(interval=1000, save_best='sg/R@50', rule='greater'),
)
custom_hooks = [
    dict(type='SceneGraphCheckHook'),
    dict(type='FrequencyBiasHook', file='data/vrd/frequencies.npz'),
]
