# The detector for relation heads, fine-tuned from COCO weights. Set num_classes and the data in the
# inheriting config.
_base_ = [
    'mmdet::_base_/models/faster-rcnn_r50_fpn.py',
    'mmdet::_base_/schedules/schedule_1x.py',
    'mmdet::_base_/default_runtime.py',
]
custom_imports = dict(imports=['gclip_mm'], allow_failed_imports=False)

optim_wrapper = dict(
    type='GClipOptimWrapper',
    optimizer=dict(lr=0.01),
    clip_grad=dict(type='NormClip', max_norm=35.0),
)
# The rate is for 8 images in all.
auto_scale_lr = dict(base_batch_size=8)
load_from = 'https://download.openmmlab.com/mmdetection/v2.0/faster_rcnn/faster_rcnn_r50_fpn_1x_coco/faster_rcnn_r50_fpn_1x_coco_20200130-047c8118.pth'
