# YOLOv3 with norm clipping by gclip_mm, at the stock threshold.
_base_ = 'mmdet::yolo/yolov3_d53_8xb8-ms-416-273e_coco.py'

custom_imports = dict(imports=['gclip_mm'], allow_failed_imports=False)
optim_wrapper = dict(
    type='GClipOptimWrapper',
    clip_grad=dict(_delete_=True, type='NormClip', max_norm=35),
)
