# U-Clip (arXiv 2302.02971): the clipped-off part is added to the gradient of the next step, so that
# clipping is unbiased on average. Needs one buffer of the size of the gradients.
custom_imports = dict(imports=['gclip_mm'], allow_failed_imports=False)
optim_wrapper = dict(
    type='GClipOptimWrapper',
    clip_grad=dict(type='NormClip', max_norm=10.0, norm_type=2, carry=True, nonfinite='skip'),
)
