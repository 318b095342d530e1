# R-CNN (arXiv 1311.2524) with ResNet-50: data, proposals and schedule of mmdet's Fast R-CNN; the
# network runs on every region. Cross entropy for classes, squared error for boxes.
_base_ = 'mmdet::fast_rcnn/fast-rcnn_r50_fpn_1x_coco.py'

custom_imports = dict(imports=['gclip_mm'], allow_failed_imports=False)

model = dict(
    _delete_=True,
    type='RCNN',
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        # Pixels outside the image are filled with 0, which is the mean after normalization.
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=1,
    ),
    backbone=dict(
        type='ResNet',
        depth=50,
        num_stages=4,
        out_indices=(3,),
        frozen_stages=1,
        norm_cfg=dict(type='BN', requires_grad=True),
        norm_eval=True,
        style='pytorch',
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50'),
    ),
    roi_head=dict(
        type='RegionRoIHead',
        bbox_roi_extractor=dict(type='ImageRegionExtractor', output_size=224, context=16),
        bbox_head=dict(
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
    train_cfg=dict(
        rcnn=dict(
            assigner=dict(
                type='MaxIoUAssigner',
                pos_iou_thr=0.5,
                neg_iou_thr=0.5,
                min_pos_iou=0.5,
                match_low_quality=False,
                ignore_iof_thr=-1,
            ),
            # The paper's 32 positives in 128, split over the two images of a GPU.
            sampler=dict(
                type='RandomSampler',
                num=64,
                pos_fraction=0.25,
                neg_pos_ub=-1,
                add_gt_as_proposals=True,
            ),
            pos_weight=-1,
            debug=False,
        )
    ),
    test_cfg=dict(
        rcnn=dict(score_thr=0.05, nms=dict(type='nms', iou_threshold=0.5), max_per_img=100)
    ),
)

# Made by `python tools/dataset_converters/make_proposals.py CONFIG`.
train_dataloader = dict(dataset=dict(proposal_file='proposals/selective_search_train2017.pkl'))
val_dataloader = dict(dataset=dict(proposal_file='proposals/selective_search_val2017.pkl'))
test_dataloader = dict(dataset=dict(proposal_file='proposals/selective_search_val2017.pkl'))
