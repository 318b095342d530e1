# Deformable DETR with value clipping in place of the stock norm clipping; all else is stock.
_base_ = 'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py'

custom_imports = dict(imports=['gclip_mm'], allow_failed_imports=False)
optim_wrapper = dict(
    type='GClipOptimWrapper',
    clip_grad=dict(_delete_=True, type='ValueClip', clip_value=0.1),
)
