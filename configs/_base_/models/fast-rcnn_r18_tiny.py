# Fast R-CNN on proposals from a file: the tiny Faster R-CNN of three levels, without its RPN. Set
# num_classes in the inheriting config.
_base_ = './faster-rcnn_r18_tiny_p3.py'

model = dict(
    _delete_=True,  # FastRCNN does not accept rpn_head
    type='FastRCNN',
    data_preprocessor={{_base_.model.data_preprocessor}},
    backbone={{_base_.model.backbone}},
    neck={{_base_.model.neck}},
    roi_head={{_base_.model.roi_head}},
    train_cfg=dict(rcnn={{_base_.model.train_cfg.rcnn}}),
    test_cfg=dict(rcnn={{_base_.model.test_cfg.rcnn}}),
)
