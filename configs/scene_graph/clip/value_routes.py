# Clipping by value, with a tighter limit for the context, whose recurrences amplify gradients.
# Usage: `tools/train.py CONFIG --clip configs/scene_graph/clip/value_routes.py`.
custom_imports = dict(imports=['gclip_mm'], allow_failed_imports=False)
optim_wrapper = dict(
    type='GClipOptimWrapper',
    clip_grad=dict(
        type='ValueClip',
        clip_value=0.1,
        rules=[
            dict(match=r'^relation_head\.context\.', type='ValueClip', clip_value=0.05),
            dict(match=r'^relation_head\.frequency_bias\.', type='ValueClip', clip_value=0.1),
        ],
    ),
)
