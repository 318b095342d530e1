# Deformable DETR with norm clipping by gclip_mm, at the stock threshold.
_base_ = 'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py'

custom_imports = dict(imports=['gclip_mm'], allow_failed_imports=False)
optim_wrapper = dict(
    type='GClipOptimWrapper',
    clip_grad=dict(_delete_=True, type='NormClip', max_norm=0.1),
)
