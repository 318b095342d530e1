# A linear warm-up of 30 iterations, then half a cosine down to 0 at the last iteration. Set the
# length in the inheriting config: train_cfg = dict(max_iters=300, val_interval=300).
train_cfg = dict(type='IterBasedTrainLoop')
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
# Another warm-up: both numbers, as `end` of the first and `begin` of the second.
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=30),
    # Without `end`, MMEngine ends it with the training.
    dict(type='CosineAnnealingLR', by_epoch=False, begin=30, eta_min=0),
]
