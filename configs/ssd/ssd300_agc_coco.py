# SSD300 with adaptive gradient clipping (arXiv 2102.06171); all else is stock.
_base_ = 'mmdet::ssd/ssd300_coco.py'

custom_imports = dict(imports=['gclip_mm'], allow_failed_imports=False)
optim_wrapper = dict(
    type='GClipOptimWrapper',
    clip_grad=dict(
        type='AGC',
        clip_factor=0.01,
        # AGC does not clip the final classifier (one per feature map, six in all), as in the
        # paper: its initial weights are small, so AGC would hardly let it learn. SSD's loss starts
        # so high that a classifier without any bound diverges, so its norm is clipped instead.
        rules=[dict(match=r'^bbox_head\.cls_convs\.', type='NormClip', max_norm=35)],
    ),
)
