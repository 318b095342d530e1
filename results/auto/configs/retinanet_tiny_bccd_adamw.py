# A tiny RetinaNet on BCCD with AdamW: the backbone and the neck of the tiny Faster R-CNN.
_base_ = [
    '../../../configs/_base_/models/retinanet_r18_tiny.py',
    '../../../configs/_base_/datasets/bccd.py',
    '../../../configs/_base_/schedules/sgd_200i.py',
    '../../../configs/_base_/tiny_runtime.py',
]
custom_imports = dict(imports=['gclip_mm'], allow_failed_imports=False)
model = dict(
    neck=dict(out_channels=32),
    bbox_head=dict(
        num_classes=3,
        in_channels=32,
        feat_channels=32,
        # The sides of the anchors of the tiny Faster R-CNN: 24, 48 and 96 pixels.
        anchor_generator=dict(scales_per_octave=3),
        bbox_coder=dict(_delete_=True, type='DeltaXYWHBBoxCoder'),
    ),
)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3, weight_decay=1e-4))
