_base_ = [
    '../_base_/scene-graph-rcnn_r18_tiny.py',
    '../_base_/shapescenes.py',
    '../_base_/tiny_schedule.py',
]
# The baseline: predicates from the classes of subject and object, with the frequencies of the
# training set. Only the scene head is trained.
max_iters = 100
model = dict(relation_head=dict(context=None, frequency_bias=dict(trainable=False)))
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
param_scheduler = [dict(type='ConstantLR', factor=1.0, by_epoch=False)]
