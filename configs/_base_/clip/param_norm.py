# Clip each tensor by its own norm: one exploding module does not slow the others down.
custom_imports = dict(imports=['gclip_mm'], allow_failed_imports=False)
optim_wrapper = dict(
    type='GClipOptimWrapper',
    clip_grad=dict(type='ParamNormClip', max_norm=1.0, norm_type=2, nonfinite='skip'),
)
