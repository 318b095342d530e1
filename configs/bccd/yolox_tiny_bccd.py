# Tiny YOLOX on BCCD, unclipped; mmdet's optimizer for YOLOX.
_base_ = [
    '../_base_/models/yolox_tiny.py',
    '../_base_/datasets/bccd.py',
    '../_base_/schedules/cosine_300i.py',
    '../_base_/tiny_runtime.py',
]
custom_imports = dict(imports=['gclip_mm'], allow_failed_imports=False)
model = dict(bbox_head=dict(num_classes=3))
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.04, momentum=0.9, weight_decay=5e-4, nesterov=True),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
)
