# Adaptive clipping: keep each unit's gradient small relative to its weights (arXiv 2102.06171).
# The paper does not clip the final classifier: add exclude=[...] with its name in your model.
custom_imports = dict(imports=['gclip_mm'], allow_failed_imports=False)
optim_wrapper = dict(
    type='GClipOptimWrapper',
    clip_grad=dict(type='AGC', clip_factor=0.01, eps=1e-3, nonfinite='skip'),
)
