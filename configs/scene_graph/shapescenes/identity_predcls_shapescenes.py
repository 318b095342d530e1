_base_ = [
    '../_base_/scene-graph-rcnn_r18_tiny.py',
    '../_base_/shapescenes.py',
    '../_base_/tiny_schedule.py',
]
model = dict(relation_head=dict(context=dict(type='IdentityContext')))
