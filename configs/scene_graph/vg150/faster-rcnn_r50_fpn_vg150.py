# The detector for the relation heads of this folder, fine-tuned from COCO weights.
_base_ = ['../_base_/detector_r50_fpn.py', '../_base_/vg150.py']

model = dict(roi_head=dict(bbox_head=dict(num_classes=150)))

train_dataloader = dict(
    batch_size=8,
    sampler=dict(_delete_=True, type='DefaultSampler', shuffle=True),
    dataset=dict(filter_cfg=dict(filter_empty_relations=False)),
)
val_evaluator = dict(
    _delete_=True, type='CocoMetric', metric='bbox', ann_file='data/vg150/val.json'
)
test_evaluator = dict(
    _delete_=True, type='CocoMetric', metric='bbox', ann_file='data/vg150/test.json'
)
