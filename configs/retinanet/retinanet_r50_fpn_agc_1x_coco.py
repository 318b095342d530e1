# RetinaNet with adaptive gradient clipping (arXiv 2102.06171); all else is stock.
_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'

custom_imports = dict(imports=['gclip_mm'], allow_failed_imports=False)
optim_wrapper = dict(
    type='GClipOptimWrapper',
    clip_grad=dict(
        type='AGC',
        clip_factor=0.01,
        # The final classifier stays unclipped, as in the paper: its initial weights are small,
        # so AGC would hardly let it learn. Its initial bias is -4.6, for the focal loss.
        exclude=[r'^bbox_head\.retina_cls\.'],
    ),
)
