# Faster R-CNN from scratch on drawn images. `make train` runs this config; it trains in minutes on
# two CPU cores.
_base_ = [
    '../_base_/models/faster-rcnn_r18_tiny.py',
    '../_base_/datasets/shape_scenes.py',
    '../_base_/tiny_runtime.py',
    '../_base_/clip/norm.py',
]

# ---- often changed: the run ----------------------------------------------------------------
lr = 2e-3
max_iters = 600
warmup_iters = 30
optim_wrapper = dict(
    # fused: the optimizer's kernel applies the clipping coefficient
    optimizer=dict(type='AdamW', lr=lr, weight_decay=0.01, fused=True),
    clip_grad=dict(max_norm=5.0),
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
