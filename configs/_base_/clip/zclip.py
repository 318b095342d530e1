# Clip the norms that stand out from the run's own, by z-score (arXiv 2504.02507).
# The paper's max_norm of 1.0 is a language model's; 35 is what stock MMDetection configs use.
custom_imports = dict(imports=['gclip_mm'], allow_failed_imports=False)
optim_wrapper = dict(
    type='GClipOptimWrapper',
    clip_grad=dict(
        type='ZClip',
        alpha=0.97,
        z_threshold=2.5,
        warmup_steps=25,
        mode='reciprocal',
        max_norm=35.0,
        nonfinite='skip',
    ),
)
