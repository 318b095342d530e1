# The study of README.md: your-own-photos config on photos of COCO with derived relations. Batches
# and pairs are half of it, because 36 trainings share a CPU.
_base_ = ['../../../configs/scene_graph/photos/rnn_predcls_photos.py']
derived = dict(
    data_root='data/derived/', metainfo=dict(flip_predicate_pairs=[('left of', 'right of')])
)
train_dataloader = dict(batch_size=4, dataset=derived)
val_dataloader = dict(dataset=derived)
test_dataloader = val_dataloader
model = dict(
    roi_head=dict(bbox_head=dict(num_classes=76)),
    relation_head=dict(num_predicates=8),
    train_cfg=dict(relation=dict(sampler=dict(num=32))),
)

optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='SGD', lr=0.02, momentum=0.9, weight_decay=1e-4)
)
max_iters = 120
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=20),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=20, end=max_iters, eta_min=0),
]
