# Shared by the tiny scene-graph configs: schedule, optimizer, frequency bias, visualization.
_base_ = ['../../_base_/schedules/warmup50_cosine.py', '../../_base_/tiny_runtime.py']

custom_imports = dict(imports=['gclip_mm'], allow_failed_imports=False)
custom_hooks = [dict(type='SceneGraphCheckHook'), dict(type='FrequencyBiasHook')]
visualizer = dict(type='SceneGraphVisualizer')

# ---- often changed: the run ----------------------------------------------------------------
lr = 2e-3
train_cfg = dict(max_iters=1600, val_interval=1600)

optim_wrapper = dict(
    type='GClipOptimWrapper',
    optimizer=dict(type='AdamW', lr=lr, weight_decay=1e-2),
    # Weight decay would pull the log-frequencies to zero, a uniform distribution.
    paramwise_cfg=dict(norm_decay_mult=0.0, custom_keys={'frequency_bias': dict(decay_mult=0.0)}),
    clip_grad=dict(type='NormClip', max_norm=5.0),
)
