# Clip by the global norm (arXiv 1211.5063).
# The best max_norm is proportional to one over the learning rate;
# tools/analysis/advise_clipping.py proposes one.
custom_imports = dict(imports=['gclip_mm'], allow_failed_imports=False)
optim_wrapper = dict(
    type='GClipOptimWrapper',
    clip_grad=dict(type='NormClip', max_norm=10.0, norm_type=2, nonfinite='skip'),
)
