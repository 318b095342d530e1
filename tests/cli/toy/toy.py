custom_imports = dict(imports=['gclip_mm', 'gclip_toy_task'], allow_failed_imports=False)

model = dict(type='ToyRegressor')
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    dataset=dict(type='ToyData'),
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='InfiniteSampler', shuffle=True),
)
optim_wrapper = dict(
    type='GClipOptimWrapper',
    optimizer=dict(type='Adam', lr=0.05),
    clip_grad=dict(type='NormClip', max_norm=0.5),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=6),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=6, end=12, T_max=6),
]
train_cfg = dict(by_epoch=False, max_iters=12)
default_hooks = dict(
    checkpoint=dict(type='CheckpointHook', interval=4, by_epoch=False),
    logger=dict(type='LoggerHook', interval=2),
)
custom_hooks = [dict(type='CrashHook', at=-1), dict(type='RankHook')]
randomness = dict(seed=0)
default_scope = 'mmengine'
log_level = 'WARNING'
