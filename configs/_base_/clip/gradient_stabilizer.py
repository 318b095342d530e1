# Keep each tensor's direction, take its norm from its history (arXiv 2502.17055v4, ICML 2026).
# For Adam-like optimizers only: with SGD the constructor raises.
custom_imports = dict(imports=['gclip_mm'], allow_failed_imports=False)
optim_wrapper = dict(
    type='GClipOptimWrapper',
    clip_grad=dict(type='GradientStabilizer', gamma1=0.7, gamma2=0.9, nonfinite='skip'),
)
