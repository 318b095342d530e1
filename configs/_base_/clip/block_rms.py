# Clip each tensor by its root mean square, so that one threshold suits tensors of any size.
# optax's default of 1.0 is meant for Adafactor's updates; plain gradients are a thousandth of that.
custom_imports = dict(imports=['gclip_mm'], allow_failed_imports=False)
optim_wrapper = dict(
    type='GClipOptimWrapper',
    clip_grad=dict(type='BlockRMSClip', threshold=1e-3, nonfinite='skip'),
)
