# A tiny R-CNN on BCCD blood cells, from scratch in minutes on two CPU cores. Make proposals once:
# python tools/dataset_converters/make_proposals.py configs/rcnn/rcnn_r18_tiny_bccd.py \
#     --method felzenszwalb --max-width 320
_base_ = [
    '../_base_/models/rcnn_r18_tiny.py',
    '../_base_/datasets/bccd_proposals.py',
    '../_base_/schedules/warmup50_cosine.py',
    '../_base_/tiny_runtime.py',
]

custom_imports = dict(imports=['gclip_mm'], allow_failed_imports=False)

lr = 0.02
train_cfg = dict(max_iters=500, val_interval=500)

model = dict(roi_head=dict(bbox_head=dict(num_classes=3)))

optim_wrapper = dict(
    type='GClipOptimWrapper',
    optimizer=dict(type='SGD', lr=lr, momentum=0.9, weight_decay=1e-4),
    clip_grad=dict(type='NormClip', max_norm=5.0),
)
