# The detector for the relation heads of this folder, fine-tuned from COCO weights.
_base_ = [
    'mmdet::_base_/models/faster-rcnn_r50_fpn.py',
    '../_base_/vrd.py',
    'mmdet::_base_/schedules/schedule_1x.py',
    'mmdet::_base_/default_runtime.py',
]
custom_imports = dict(imports=['gclip_mm'], allow_failed_imports=False)

model = dict(roi_head=dict(bbox_head=dict(num_classes=100)))

train_dataloader = dict(
    batch_size=8,
    sampler=dict(_delete_=True, type='DefaultSampler', shuffle=True),
    dataset=dict(filter_cfg=dict(filter_empty_relations=False)),
)
val_evaluator = dict(_delete_=True, type='CocoMetric', metric='bbox', ann_file='data/vrd/test.json')
test_evaluator = dict(
    _delete_=True, type='CocoMetric', metric='bbox', ann_file='data/vrd/test.json'
)

optim_wrapper = dict(
    type='GClipOptimWrapper',
    optimizer=dict(lr=0.01),
    clip_grad=dict(type='NormClip', max_norm=35.0),
)
auto_scale_lr = dict(base_batch_size=8)
load_from = 'https://download.openmmlab.com/mmdetection/v2.0/faster_rcnn/faster_rcnn_r50_fpn_1x_coco/faster_rcnn_r50_fpn_1x_coco_20200130-047c8118.pth'
