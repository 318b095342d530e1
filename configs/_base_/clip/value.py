# Clamp every element of every gradient.
custom_imports = dict(imports=['gclip_mm'], allow_failed_imports=False)
optim_wrapper = dict(
    type='GClipOptimWrapper',
    clip_grad=dict(type='ValueClip', clip_value=0.1, nonfinite='skip'),
)
