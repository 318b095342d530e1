# Tiny Faster R-CNN on BCCD with a low learning rate and more iterations than the other configs.
_base_ = [
    '../_base_/models/faster-rcnn_r18_tiny.py',
    '../_base_/datasets/bccd.py',
    '../_base_/schedules/cosine_300i.py',
    '../_base_/tiny_runtime.py',
    '../_base_/clip/norm.py',
]

# ---- often changed: the run ----------------------------------------------------------------
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.04, momentum=0.9, weight_decay=1e-4))

# ---- rarely changed ------------------------------------------------------------------------
model = dict(roi_head=dict(bbox_head=dict(num_classes=3)))
