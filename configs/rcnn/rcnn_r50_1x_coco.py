# R-CNN (arXiv 1311.2524) with ResNet-50: data, proposals and schedule of mmdet's Fast R-CNN; the
# network runs on every region. Cross entropy for classes, squared error for boxes.
_base_ = 'mmdet::fast_rcnn/fast-rcnn_r50_fpn_1x_coco.py'

custom_imports = dict(imports=['gclip_mm'], allow_failed_imports=False)

# ---- rarely changed ------------------------------------------------------------------------
model = dict(
    type='RCNN',
    # Pixels outside the image are filled with 0, which is the mean after normalization.
    data_preprocessor=dict(pad_size_divisor=1),
    backbone=dict(out_indices=(3,)),
    neck=None,
    roi_head=dict(
        type='RegionRoIHead',
        bbox_roi_extractor=dict(
            _delete_=True, type='ImageRegionExtractor', output_size=224, context=16
        ),
        bbox_head=dict(
            _delete_=True,
            type='BBoxHead',
            with_avg_pool=True,
            in_channels=2048,
            roi_feat_size=7,
            num_classes=80,
            bbox_coder=dict(
                type='DeltaXYWHBBoxCoder',
                target_means=[0.0, 0.0, 0.0, 0.0],
                target_stds=[0.1, 0.1, 0.2, 0.2],
            ),
            reg_class_agnostic=False,
            loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
            # Successors of Fast R-CNN use dict(type='L1Loss', loss_weight=1.0).
            loss_bbox=dict(type='MSELoss', loss_weight=1.0),
        ),
    ),
    # The paper's 32 positives in 128, split over the two images of a GPU.
    train_cfg=dict(rcnn=dict(sampler=dict(num=64))),
)

# ---- often changed: the proposals ----------------------------------------------------------
# Made by `python tools/dataset_converters/make_proposals.py CONFIG`.
train_dataloader = dict(dataset=dict(proposal_file='proposals/selective_search_train2017.pkl'))
val_dataloader = dict(dataset=dict(proposal_file='proposals/selective_search_val2017.pkl'))
test_dataloader = dict(dataset=dict(proposal_file='proposals/selective_search_val2017.pkl'))
