# No threshold: bounds how far a step may move each unit, from the optimizer's own learning rate.
custom_imports = dict(imports=['gclip_mm'], allow_failed_imports=False)
optim_wrapper = dict(
    type='GClipOptimWrapper',
    clip_grad=dict(type='Auto', nonfinite='skip'),
)
