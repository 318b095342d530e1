# As warmup_cosine.py, with a warm-up of 50 iterations.
_base_ = './warmup_cosine.py'
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=50, eta_min=0),
]
