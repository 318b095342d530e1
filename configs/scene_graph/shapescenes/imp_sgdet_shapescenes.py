_base_ = ['./imp_predcls_shapescenes.py']
# SGDet needs detections, so the detector is trained too, from scratch.
model = dict(
    protocol='sgdet',
    detector_loss=True,
    # Half as many regions and pairs as in the other configs, which halves the time of a step.
    train_cfg=dict(
        rpn_proposal=dict(max_per_img=50),
        rcnn=dict(sampler=dict(num=64)),
        relation=dict(sampler=dict(num=32)),
    ),
)
val_evaluator = dict(protocol='sgdet')
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
