# SSD300 with adaptive gradient clipping (arXiv 2102.06171); all else is stock.
_base_ = 'mmdet::ssd/ssd300_coco.py'

custom_imports = dict(imports=['gclip_mm'], allow_failed_imports=False)
optim_wrapper = dict(
    type='GClipOptimWrapper',
    clip_grad=dict(
        type='AGC',
        clip_factor=0.01,
        # The final classifier (one on each of the six feature maps) stays out of AGC, as in the
        # paper: relative to its small first weights it would hardly be let learn. But SSD's loss
        # starts so high that a classifier without any bound diverges, so its norm is clipped.
        rules=[dict(match=r'^bbox_head\.cls_convs\.', type='NormClip', max_norm=35)],
    ),
)
