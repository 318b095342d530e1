# Clip the global norm where its z-score among the norms of the run is high (arXiv 2504.02507).
# The paper's max_norm of 1.0 is for language models; stock MMDetection configs use 35.
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
