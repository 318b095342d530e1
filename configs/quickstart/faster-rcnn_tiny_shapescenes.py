# Faster R-CNN from scratch on drawn images. `make train` runs this config; it trains in minutes on
# two CPU cores.
_base_ = [
    '../_base_/models/faster-rcnn_r18_tiny.py',
    '../_base_/datasets/shape_scenes.py',
    '../_base_/tiny_runtime.py',
    '../_base_/clip/auto.py',
]

# ---- often changed: the run ----------------------------------------------------------------
# Without clipping this rate ends in NaN (results/quickstart).
lr = 2.56
max_iters = 580
warmup_iters = 30
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
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=warmup_iters),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=warmup_iters, end=max_iters, eta_min=0),
]
