# A tiny R-CNN on BCCD blood cells, from scratch in minutes on two CPU cores. Make proposals once:
# python tools/dataset_converters/make_proposals.py configs/rcnn/rcnn_r18_tiny_bccd.py \
#     --method felzenszwalb --max-width 320
_base_ = [
    '../_base_/models/rcnn_r18_tiny.py',
    '../_base_/datasets/bccd_proposals.py',
    '../_base_/schedules/cosine_300i.py',
    '../_base_/tiny_runtime.py',
]
custom_imports = dict(imports=['gclip_mm'], allow_failed_imports=False)

# ---- often changed: the run ----------------------------------------------------------------
lr = 0.02
max_iters = 500
warmup_iters = 50
optim_wrapper = dict(
    type='GClipOptimWrapper',
    optimizer=dict(type='SGD', lr=lr, momentum=0.9, weight_decay=1e-4),
    clip_grad=dict(type='NormClip', max_norm=5.0),
)

# ---- rarely changed ------------------------------------------------------------------------
model = dict(roi_head=dict(bbox_head=dict(num_classes=3)))
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
param_scheduler = [
    dict(_base_.param_scheduler[0], end=warmup_iters),
    dict(_base_.param_scheduler[1], begin=warmup_iters, end=max_iters),
]
