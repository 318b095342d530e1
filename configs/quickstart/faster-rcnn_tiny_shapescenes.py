# Faster R-CNN from scratch on drawn images. `make train` runs this config; it trains in minutes on
# two CPU cores.
_base_ = [
    '../_base_/models/faster-rcnn_r18_tiny.py',
    '../_base_/datasets/shape_scenes.py',
    '../_base_/schedules/cosine_300i.py',
    '../_base_/tiny_runtime.py',
    '../_base_/clip/auto.py',
]

# ---- often changed: the run ----------------------------------------------------------------
# Without clipping this rate ends in NaN (results/quickstart).
lr = 2.56
max_iters = 580
optim_wrapper = dict(
    optimizer=dict(type='SGD', lr=lr, momentum=0.9, weight_decay=1e-4, fused=True),
)

# ---- rarely changed ------------------------------------------------------------------------
model = dict(
    backbone=dict(base_channels=32),
    neck=dict(in_channels=[32, 64, 128, 256]),
    roi_head=dict(bbox_head=dict(num_classes=10)),
    # Ten classes are learned from positive regions: use few regions, half of them positive.
    train_cfg=dict(rcnn=dict(sampler=dict(num=48, pos_fraction=0.5))),
)
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
param_scheduler = [_base_.param_scheduler[0], dict(_base_.param_scheduler[1], end=max_iters)]
