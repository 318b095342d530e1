# Tiny SSD on BCCD, unclipped; mmdet's optimizer for SSD, with a learning rate for this network.
_base_ = [
    '../_base_/models/ssd_r18_tiny.py',
    '../_base_/datasets/bccd.py',
    '../_base_/schedules/cosine_300i.py',
    '../_base_/tiny_runtime.py',
]
custom_imports = dict(imports=['gclip_mm'], allow_failed_imports=False)
model = dict(bbox_head=dict(num_classes=3))
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.02, momentum=0.9, weight_decay=5e-4),
)
