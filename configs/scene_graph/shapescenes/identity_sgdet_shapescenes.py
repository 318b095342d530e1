_base_ = ['./identity_predcls_shapescenes.py']
# Boxes and labels are found: the detector is trained along, from scratch, which takes longer.
max_iters = 1000
model = dict(protocol='sgdet', detector_loss=True)
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=50, end=max_iters, eta_min=0),
]
val_evaluator = dict(protocol='sgdet')
test_evaluator = val_evaluator
