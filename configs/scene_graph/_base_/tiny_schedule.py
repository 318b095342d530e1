# Shared by the tiny scene-graph configs: schedule, optimizer, frequency bias, visualization.
_base_ = ['../../_base_/tiny_runtime.py', '../../_base_/schedules/cosine_300i.py']

custom_imports = dict(imports=['gclip_mm'], allow_failed_imports=False)
custom_hooks = [dict(type='SceneGraphCheckHook'), dict(type='FrequencyBiasHook')]
visualizer = dict(type='SceneGraphVisualizer')

# ---- often changed: the run ----------------------------------------------------------------
lr = 2e-3
max_iters = 1600
warmup_iters = 50

# ---- rarely changed ------------------------------------------------------------------------
optim_wrapper = dict(
    type='GClipOptimWrapper',
    optimizer=dict(type='AdamW', lr=lr, weight_decay=1e-2),
    # Weight decay would pull the log-frequencies to zero, a uniform distribution.
    paramwise_cfg=dict(norm_decay_mult=0.0, custom_keys={'frequency_bias': dict(decay_mult=0.0)}),
    clip_grad=dict(type='NormClip', max_norm=5.0),
)
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
param_scheduler = [
    dict(_base_.param_scheduler[0], end=warmup_iters),
    dict(_base_.param_scheduler[1], begin=warmup_iters, end=max_iters),
]
