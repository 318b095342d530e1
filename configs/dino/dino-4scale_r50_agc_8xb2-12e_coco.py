# DINO with adaptive gradient clipping (arXiv 2102.06171); all else is stock.
# AdamW's step does not depend on the size of the gradient: the paper uses SGD throughout, and AGC
# here evens out the moments rather than bounding the step.
_base_ = 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py'

custom_imports = dict(imports=['gclip_mm'], allow_failed_imports=False)
optim_wrapper = dict(
    type='GClipOptimWrapper',
    clip_grad=dict(
        _delete_=True,
        type='AGC',
        clip_factor=0.01,
        # The final classifier stays unclipped, as in the paper: relative to its small first
        # weights it would hardly be let learn. One for each decoder layer, and one that scores
        # the encoder's proposals.
        exclude=[r'^bbox_head\.cls_branches\.'],
    ),
)
