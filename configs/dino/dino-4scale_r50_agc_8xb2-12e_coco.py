# DINO with adaptive gradient clipping (arXiv 2102.06171); all else is stock.
# AdamW's step does not depend on the size of the gradient, so here AGC evens out the moments and
# does not bound the step. The paper uses SGD throughout.
_base_ = 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py'

custom_imports = dict(imports=['gclip_mm'], allow_failed_imports=False)
optim_wrapper = dict(
    type='GClipOptimWrapper',
    clip_grad=dict(
        _delete_=True,
        type='AGC',
        clip_factor=0.01,
        # The final classifier stays unclipped, as in the paper: its initial weights are small,
        # so AGC would hardly let it learn. There is one per decoder layer, and one that
        # scores the encoder's proposals.
        exclude=[r'^bbox_head\.cls_branches\.'],
    ),
)
