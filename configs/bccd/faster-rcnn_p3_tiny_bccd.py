# Tiny Faster R-CNN on BCCD, unclipped; a step takes less than half that of faster-rcnn_tiny_bccd.
_base_ = [
    '../_base_/models/faster-rcnn_r18_tiny_p3.py',
    '../_base_/datasets/bccd.py',
    '../_base_/schedules/sgd_200i.py',
    '../_base_/tiny_runtime.py',
]
custom_imports = dict(imports=['gclip_mm'], allow_failed_imports=False)
model = dict(roi_head=dict(bbox_head=dict(num_classes=3)))
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.04, momentum=0.9, weight_decay=1e-4),
)
