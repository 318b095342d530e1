# Fast R-CNN on VGG-16's last convolution, as in the paper (arXiv 1504.08083), with norm clipping.
_base_ = 'mmdet::fast_rcnn/fast-rcnn_r50_fpn_1x_coco.py'

custom_imports = dict(imports=['gclip_mm'], allow_failed_imports=False)
model = dict(
    backbone=dict(
        _delete_=True,
        type='VGG',
        depth=16,
        with_last_pool=False,  # stride 16
        frozen_stages=2,
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://vgg16'),
    ),
    neck=None,
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=512, featmap_strides=[16]),
        bbox_head=dict(in_channels=512, fc_out_channels=4096),
    ),
)
optim_wrapper = dict(
    type='GClipOptimWrapper',
    clip_grad=dict(type='NormClip', max_norm=35),
)
