_base_ = [
    '../_base_/scene-graph-rcnn_r18_tiny.py',
    '../_base_/shapescenes.py',
    '../_base_/tiny_schedule.py',
    '../_base_/transformer_tiny.py',
]
model = dict(relation_head=dict(context=_base_.transformer))
