# Adaptive, with a budget of its own for each part. Two kinds of weights are kept from it:
# - the frequency bias: its weights are log-frequencies, whose size says how rare a predicate is and
#   not how far a step may go;
# - the final classifiers, as in arXiv 2102.06171: relative to their small first weights they would
#   hardly be let learn. They have a norm rule instead, so that nothing goes unclipped.
# For `tools/train.py CONFIG --clip configs/scene_graph/clip/agc_routes.py`.
custom_imports = dict(imports=['gclip_mm'], allow_failed_imports=False)
optim_wrapper = dict(
    type='GClipOptimWrapper',
    clip_grad=dict(
        type='AGC',
        clip_factor=0.05,
        rules=[
            dict(match=r'^relation_head\.frequency_bias\.', type='NormClip', max_norm=1.0),
            dict(match=r'\.fc_(cls|reg|object|predicate|scene)\.', type='NormClip', max_norm=5.0),
            dict(match=r'^(backbone|neck|rpn_head|roi_head)\.', clip_factor=0.01),
            dict(match=r'^relation_head\.context\.', clip_factor=0.05),
        ],
    ),
)
