_base_ = [
    '../_base_/scene-graph-rcnn_r50_fpn.py',
    '../_base_/vg150.py',
    '../_base_/vg150_schedule.py',
]
model = dict(
    roi_head=dict(bbox_head=dict(num_classes=150)),
    relation_head=dict(
        num_predicates=50,
        context=dict(type='TransformerContext', norm='post', hidden_dim=512),
    ),
)
# Settings for the Transformer from the same code: a smaller learning rate, 0.001 for each of 16
# images, and 16000 iterations with a step at 10000.
max_iters = 16000
optim_wrapper = dict(optimizer=dict(lr=0.016))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', by_epoch=False, milestones=[10000], gamma=0.1),
]
train_cfg = dict(max_iters=max_iters)
train_dataloader = dict(batch_size=16)
auto_scale_lr = dict(base_batch_size=16)
# Checkpoint of faster-rcnn_r50_fpn_vg150.py, which has to be trained first.
load_from = 'work_dirs/faster-rcnn_r50_fpn_vg150/epoch_12.pth'
