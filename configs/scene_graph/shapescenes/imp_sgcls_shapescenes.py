_base_ = ['./imp_predcls_shapescenes.py']
# SGCls needs a classifier for object labels, so the detector is trained on its own losses too.
model = dict(
    protocol='sgcls',
    detector_loss=True,
    # Half as many regions as in the detection configs, to save time.
    train_cfg=dict(rcnn=dict(sampler=dict(num=64))),
)
val_evaluator = dict(protocol='sgcls')
test_evaluator = val_evaluator
# The losses of the detector add to the norm, which is 5 to 17 here and 2 to 13 in PredCls.
optim_wrapper = dict(clip_grad=dict(max_norm=20.0))

max_iters = 1000
warmup_iters = 50
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=warmup_iters),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=warmup_iters, end=max_iters, eta_min=0),
]
