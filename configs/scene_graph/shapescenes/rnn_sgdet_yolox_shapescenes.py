_base_ = [
    '../_base_/scene-graph-yolox_tiny.py',
    '../_base_/shapescenes.py',
    '../_base_/tiny_schedule.py',
]
model = dict(
    detector=dict(bbox_head=dict(num_classes=10)),
    relation_head=dict(context=dict(type='RNNContext', cell='lstm', hidden_dim=128)),
)
val_evaluator = dict(protocol='sgdet')
test_evaluator = val_evaluator
