# Tiny Fast R-CNN on BCCD, unclipped. Needs proposals, see configs/bccd/README.md.
_base_ = [
    '../_base_/models/fast-rcnn_r18_tiny.py',
    '../_base_/datasets/bccd_proposals.py',
    '../_base_/schedules/cosine_300i.py',
    '../_base_/tiny_runtime.py',
]
custom_imports = dict(imports=['gclip_mm'], allow_failed_imports=False)
batch_size = 8
train_dataloader = dict(batch_size=batch_size)
model = dict(roi_head=dict(bbox_head=dict(num_classes=3)))
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.04, momentum=0.9, weight_decay=1e-4),
)
