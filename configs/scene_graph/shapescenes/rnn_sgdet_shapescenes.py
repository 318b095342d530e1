_base_ = ['./rnn_sgcls_shapescenes.py']
# SGDet needs detections; the detector is trained from scratch, as in SGCls.
model = dict(
    protocol='sgdet',
    # Half as many regions and pairs as in PredCls, which halves the time of a step.
    train_cfg=dict(
        rpn_proposal=dict(max_per_img=50),
        relation=dict(sampler=dict(num=32)),
    ),
)
val_evaluator = dict(protocol='sgdet')
test_evaluator = val_evaluator
# The losses of the detector add to the norm, which is 5 to 17 here and 2 to 13 in PredCls.
optim_wrapper = dict(clip_grad=dict(max_norm=20.0))

train_cfg = dict(max_iters=1000, val_interval=1000)
