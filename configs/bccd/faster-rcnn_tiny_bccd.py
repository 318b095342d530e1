# Tiny Faster R-CNN on BCCD with a low learning rate and more iterations than the other configs.
_base_ = [
    '../_base_/models/faster-rcnn_r18_tiny.py',
    '../_base_/datasets/bccd.py',
    '../_base_/tiny_runtime.py',
    '../_base_/clip/norm.py',
]

# ---- often changed: the run ----------------------------------------------------------------
max_iters = 300
warmup_iters = 30
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.04, momentum=0.9, weight_decay=1e-4))

# ---- rarely changed ------------------------------------------------------------------------
model = dict(roi_head=dict(bbox_head=dict(num_classes=3)))
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=warmup_iters),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=warmup_iters, end=max_iters, eta_min=0),
]
