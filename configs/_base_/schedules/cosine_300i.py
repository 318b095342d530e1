# 300 iterations: a linear warm-up of 30, then half a cosine down to 0. The config of a longer run
# sets the ends, which a list of the base does not follow by itself:
#   max_iters = 800
#   train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
#   param_scheduler = [_base_.param_scheduler[0], dict(_base_.param_scheduler[1], end=max_iters)]
max_iters = 300
warmup_iters = 30
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=warmup_iters),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=warmup_iters, end=max_iters, eta_min=0),
]
