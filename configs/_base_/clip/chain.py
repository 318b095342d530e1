# Two rules in sequence: an adaptive threshold, then an absolute bound.
custom_imports = dict(imports=['gclip_mm'], allow_failed_imports=False)
optim_wrapper = dict(
    type='GClipOptimWrapper',
    clip_grad=dict(
        type='ChainClip',
        clips=[
            dict(type='AutoClip', percentile=90, window=1000),
            dict(type='NormClip', max_norm=35.0),
        ],
        nonfinite='skip',
    ),
)
