# The tiny scene-graph model with its detector trained too, on ShapeScenes. Set protocol and context
# in the inheriting config.
_base_ = ['./scene-graph-rcnn_r18_tiny.py', './shapescenes.py', './tiny_schedule.py']

# ---- often changed: the run ----------------------------------------------------------------
max_iters = 1000
# The losses of the detector add to the norm, which is 5 to 17 here and 2 to 13 in PredCls.
optim_wrapper = dict(clip_grad=dict(max_norm=20.0))

# ---- rarely changed ------------------------------------------------------------------------
model = dict(
    detector_loss=True,
    # Half as many regions as in the detection configs, to save time.
    train_cfg=dict(rcnn=dict(sampler=dict(num=64))),
)
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
param_scheduler = [_base_.param_scheduler[0], dict(_base_.param_scheduler[1], end=max_iters)]
