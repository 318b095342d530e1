# Cascade R-CNN with adaptive gradient clipping (arXiv 2102.06171); all else is stock.
_base_ = 'mmdet::cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py'

custom_imports = dict(imports=['gclip_mm'], allow_failed_imports=False)
optim_wrapper = dict(
    type='GClipOptimWrapper',
    clip_grad=dict(
        type='AGC',
        clip_factor=0.01,
        # The final classifier stays unclipped, as in the paper: its initial weights are small,
        # so AGC would hardly let it learn. Each of the three stages has one.
        exclude=[r'^roi_head\.bbox_head\.[0-2]\.fc_cls\.'],
    ),
)
