# YOLOv3 with adaptive gradient clipping (arXiv 2102.06171); all else is stock.
_base_ = 'mmdet::yolo/yolov3_d53_8xb8-ms-416-273e_coco.py'

custom_imports = dict(imports=['gclip_mm'], allow_failed_imports=False)
optim_wrapper = dict(
    type='GClipOptimWrapper',
    clip_grad=dict(
        _delete_=True,
        type='AGC',
        clip_factor=0.01,
        # The final classifier stays unclipped, as in the paper: its initial weights are small,
        # so AGC would hardly let it learn. YOLOv3 predicts classes, objectness and boxes
        # with one convolution per level, so the boxes stay unclipped as well.
        exclude=[r'^bbox_head\.convs_pred\.'],
    ),
)
