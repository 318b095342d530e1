# RetinaNet with norm clipping; all else is stock. The stock config does not clip; 35 is
# mmdet's value for FCOS and YOLOv3, and clips only spikes at the stock learning rate.
_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'

custom_imports = dict(imports=['gclip_mm'], allow_failed_imports=False)
optim_wrapper = dict(
    type='GClipOptimWrapper',
    clip_grad=dict(type='NormClip', max_norm=35),
)
