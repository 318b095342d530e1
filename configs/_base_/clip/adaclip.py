# Scale down elements above the moving average of the largest element of their tensor (Stable-SPAM,
# arXiv 2502.17055v2).
custom_imports = dict(imports=['gclip_mm'], allow_failed_imports=False)
optim_wrapper = dict(
    type='GClipOptimWrapper',
    clip_grad=dict(type='AdaClip', beta=0.999, nonfinite='skip'),
)
