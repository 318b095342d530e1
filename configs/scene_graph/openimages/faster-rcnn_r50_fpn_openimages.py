# The detector for the relation heads of this folder, fine-tuned from COCO weights.
_base_ = ['../_base_/detector_r50_fpn.py', '../_base_/openimages.py']

model = dict(roi_head=dict(bbox_head=dict(num_classes=601)))

train_dataloader = dict(
    batch_size=8,
    sampler=dict(_delete_=True, type='DefaultSampler', shuffle=True),
    dataset=dict(filter_cfg=dict(filter_empty_relations=False)),
)
val_evaluator = dict(
    _delete_=True, type='CocoMetric', metric='bbox', ann_file='data/openimages_vrd/val.json'
)
test_evaluator = dict(
    _delete_=True, type='CocoMetric', metric='bbox', ann_file='data/openimages_vrd/test.json'
)
