# Clip single elements above 70 times (the root of theta) their usual size (SPAM, arXiv 2501.06842).
# Needs one buffer of the size of the gradients.
custom_imports = dict(imports=['gclip_mm'], allow_failed_imports=False)
optim_wrapper = dict(
    type='GClipOptimWrapper',
    clip_grad=dict(type='SpikeClip', theta=5000, beta=0.999, grace_steps=20, nonfinite='skip'),
)
