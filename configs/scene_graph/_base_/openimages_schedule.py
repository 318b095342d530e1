# The schedule of VG150, with the learning rate of PySGG for Open Images (0.008 for 12 images,
# configs/e2e_relBGNN_oiv6.yaml of their code); gradients clipped to norm 5.0 there too.
_base_ = ['./vg150_schedule.py']

max_iters = 40000
optim_wrapper = dict(optimizer=dict(lr=0.008))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', by_epoch=False, milestones=[24000, 34000], gamma=0.1),
]
train_cfg = dict(max_iters=max_iters)
custom_hooks = [
    dict(type='SceneGraphCheckHook'),
    dict(type='FrequencyBiasHook', file='data/openimages_vrd/frequencies.npz'),
]
