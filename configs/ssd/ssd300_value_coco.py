# SSD300 with value clipping; all else is stock. The stock config does not clip.
_base_ = 'mmdet::ssd/ssd300_coco.py'

custom_imports = dict(imports=['gclip_mm'], allow_failed_imports=False)
optim_wrapper = dict(
    type='GClipOptimWrapper',
    clip_grad=dict(type='ValueClip', clip_value=0.1),
)
