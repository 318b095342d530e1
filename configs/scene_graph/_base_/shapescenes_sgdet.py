# SGDet needs detections, so the detector is trained too, from scratch.
_base_ = './shapescenes_joint.py'

model = dict(
    protocol='sgdet',
    # Half as many regions and pairs as in PredCls, which halves the time of a step.
    train_cfg=dict(rpn_proposal=dict(max_per_img=50), relation=dict(sampler=dict(num=32))),
)
val_evaluator = dict(protocol='sgdet')
test_evaluator = val_evaluator
