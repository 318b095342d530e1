# Clip each tensor against the moving average of its own norm (arXiv 2502.11034).
# max_norm bounds the global norm for the first warmup_steps only; the paper's 1.0 is for language
# models.
custom_imports = dict(imports=['gclip_mm'], allow_failed_imports=False)
optim_wrapper = dict(
    type='GClipOptimWrapper',
    clip_grad=dict(
        type='AdaGC', rel=1.05, beta=0.98, warmup_steps=100, max_norm=10.0, nonfinite='skip'
    ),
)
