# By norm, with a budget of its own for each part, so that a spike in one does not silence the
# others: the detector (where it is trained), the context, and the frequency bias; the outer rule is
# for the heads. For `tools/train.py CONFIG --clip configs/scene_graph/clip/norm_routes.py`.
custom_imports = dict(imports=['gclip_mm'], allow_failed_imports=False)
optim_wrapper = dict(
    type='GClipOptimWrapper',
    clip_grad=dict(
        type='NormClip',
        max_norm=5.0,
        rules=[
            dict(match=r'^(backbone|neck|rpn_head|roi_head)\.', type='NormClip', max_norm=10.0),
            dict(match=r'^relation_head\.context\.', type='NormClip', max_norm=2.0),
            dict(match=r'^relation_head\.frequency_bias\.', type='NormClip', max_norm=1.0),
        ],
    ),
)
