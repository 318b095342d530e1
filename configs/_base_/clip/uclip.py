# U-Clip (arXiv 2302.02971): what is cut off is added to the next step's gradient, so that clipping
# is unbiased on average. Costs one buffer of the gradients' size.
custom_imports = dict(imports=['gclip_mm'], allow_failed_imports=False)
optim_wrapper = dict(
    type='GClipOptimWrapper',
    clip_grad=dict(type='NormClip', max_norm=10.0, norm_type=2, carry=True, nonfinite='skip'),
)
