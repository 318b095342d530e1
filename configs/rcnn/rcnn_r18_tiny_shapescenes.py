# A tiny R-CNN on ShapeScenes, from scratch in minutes on two CPU cores. Make proposals once:
#   python tools/dataset_converters/make_proposals.py configs/rcnn/rcnn_r18_tiny_shapescenes.py
_base_ = [
    '../_base_/models/rcnn_r18_tiny.py',
    '../_base_/datasets/shape_scenes_proposals.py',
    '../_base_/schedules/warmup50_cosine.py',
    '../_base_/tiny_runtime.py',
]

custom_imports = dict(imports=['gclip_mm'], allow_failed_imports=False)

lr = 0.02
train_cfg = dict(max_iters=800, val_interval=800)

model = dict(roi_head=dict(bbox_head=dict(num_classes=10)))

optim_wrapper = dict(
    type='GClipOptimWrapper',
    optimizer=dict(type='SGD', lr=lr, momentum=0.9, weight_decay=1e-4),
    clip_grad=dict(type='NormClip', max_norm=5.0),
)
