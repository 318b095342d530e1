# Clip by the global norm at a percentile of the norms of the run (arXiv 2007.14469): no threshold
# to tune. At 10, nine steps in ten are clipped, and the learning rate may be higher; near 100,
# only spikes are clipped.
custom_imports = dict(imports=['gclip_mm'], allow_failed_imports=False)
optim_wrapper = dict(
    type='GClipOptimWrapper',
    clip_grad=dict(type='AutoClip', percentile=10, window=1000, nonfinite='skip'),
)
