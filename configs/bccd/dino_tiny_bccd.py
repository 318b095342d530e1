# Tiny DINO on BCCD, unclipped; AdamW as in mmdet (mmdet's config clips at a norm of 0.1).
_base_ = [
    '../_base_/models/dino_r18_tiny.py',
    '../_base_/datasets/bccd.py',
    '../_base_/schedules/cosine_300i.py',
    '../_base_/tiny_runtime.py',
]
custom_imports = dict(imports=['gclip_mm'], allow_failed_imports=False)
model = dict(bbox_head=dict(num_classes=3))
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=1e-4),
)
