# Clipping by norm with separate limits, so that a spike in one part does not scale down the others:
# detector (if trained), context and frequency bias; the outer rule applies to the heads.
# Usage: `tools/train.py CONFIG --clip configs/scene_graph/clip/norm_routes.py`.
custom_imports = dict(imports=['gclip_mm'], allow_failed_imports=False)
optim_wrapper = dict(
    type='GClipOptimWrapper',
    clip_grad=dict(
        type='NormClip',
        max_norm=5.0,
        rules=[
            dict(
                match=r'^(detector|backbone|neck|rpn_head|roi_head)\.',
                type='NormClip',
                max_norm=10.0,
            ),
            dict(match=r'^relation_head\.context\.', type='NormClip', max_norm=2.0),
            dict(match=r'^relation_head\.frequency_bias\.', type='NormClip', max_norm=1.0),
        ],
    ),
)
