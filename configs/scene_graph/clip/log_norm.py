# Logs the norm of the gradients and clips nothing: run it first, to see which limit would act.
# Usage: `tools/train.py CONFIG --clip configs/scene_graph/clip/log_norm.py`.
custom_imports = dict(imports=['gclip_mm'], allow_failed_imports=False)
optim_wrapper = dict(
    type='GClipOptimWrapper',
    clip_grad=dict(type='NormClip', max_norm=float('inf')),
)
