# Adaptive clipping with separate limits for each part. Two kinds of weights are clipped by norm
# instead:
# - the frequency bias: its weights are log-frequencies, whose size is the rarity of a predicate and
#   not a scale for the step;
# - the final classifiers, as in arXiv 2102.06171, because AGC relative to their small initial
#   weights would almost stop their training.
# Usage: `tools/train.py CONFIG --clip configs/scene_graph/clip/agc_routes.py`.
custom_imports = dict(imports=['gclip_mm'], allow_failed_imports=False)
optim_wrapper = dict(
    type='GClipOptimWrapper',
    clip_grad=dict(
        type='AGC',
        clip_factor=0.05,
        rules=[
            dict(match=r'^relation_head\.frequency_bias\.', type='NormClip', max_norm=1.0),
            dict(match=r'\.fc_(cls|reg|object|predicate|scene)\.', type='NormClip', max_norm=5.0),
            dict(match=r'^(detector|backbone|neck|rpn_head|roi_head)\.', clip_factor=0.01),
            dict(match=r'^relation_head\.context\.', clip_factor=0.05),
        ],
    ),
)
