# A tiny R-CNN on ShapeScenes, from scratch in minutes on two CPU cores. Make proposals once:
#   python tools/dataset_converters/make_proposals.py configs/rcnn/rcnn_r18_tiny_shapescenes.py
_base_ = [
    '../_base_/models/rcnn_r18_tiny.py',
    '../_base_/datasets/shape_scenes_proposals.py',
    '../_base_/tiny_runtime.py',
]

custom_imports = dict(imports=['gclip_mm'], allow_failed_imports=False)

lr = 0.02
max_iters = 800
warmup_iters = 50

model = dict(roi_head=dict(bbox_head=dict(num_classes=10)))

train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

optim_wrapper = dict(
    type='GClipOptimWrapper',
    optimizer=dict(type='SGD', lr=lr, momentum=0.9, weight_decay=1e-4),
    clip_grad=dict(type='NormClip', max_norm=5.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=warmup_iters),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=warmup_iters, end=max_iters, eta_min=0),
]
