# The control: the same learning rate without clipping. The loss becomes NaN.
_base_ = [
    '../_base_/models/faster-rcnn_r18_tiny.py',
    '../_base_/datasets/bccd.py',
    '../_base_/schedules/sgd_200i.py',
    '../_base_/tiny_runtime.py',
]
custom_imports = dict(imports=['gclip_mm'], allow_failed_imports=False)
model = dict(roi_head=dict(bbox_head=dict(num_classes=3)))
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.16, momentum=0.9, weight_decay=1e-4),
)
