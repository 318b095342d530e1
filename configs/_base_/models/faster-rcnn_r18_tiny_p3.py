# The tiny Faster R-CNN without its finest level, at half the width: a step takes less than half the
# time. No object in BCCD is small enough to need stride 4. Set num_classes in the inheriting
# config.
_base_ = './faster-rcnn_r18_tiny.py'

model = dict(
    neck=dict(start_level=1, num_outs=3, out_channels=32),
    rpn_head=dict(
        in_channels=32,
        feat_channels=32,
        # sides of 24, 48 and 96 pixels, as at strides 4, 8 and 16 with a scale of 6
        anchor_generator=dict(scales=[3], strides=[8, 16, 32]),
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=32, featmap_strides=[8, 16, 32]),
        bbox_head=dict(in_channels=32),
    ),
    train_cfg=dict(rcnn=dict(sampler=dict(num=64))),
)
