# Value clipping at a learning rate that diverges without clipping.
_base_ = [
    '../_base_/models/faster-rcnn_r18_tiny.py',
    '../_base_/datasets/bccd.py',
    '../_base_/schedules/sgd_200i.py',
    '../_base_/tiny_runtime.py',
    '../_base_/clip/value.py',
]
model = dict(roi_head=dict(bbox_head=dict(num_classes=3)))
optim_wrapper = dict(
    optimizer=dict(type='SGD', lr=0.16, momentum=0.9, weight_decay=1e-4),
    clip_grad=dict(clip_value=0.01),
)
