_base_ = [
    '../_base_/scene-graph-rcnn_r50_fpn.py',
    '../_base_/vg150.py',
    '../_base_/vg150_schedule.py',
]
model = dict(
    roi_head=dict(bbox_head=dict(num_classes=150)),
    relation_head=dict(
        num_predicates=50,
        context=dict(type='IMPContext', hidden_dim=512),
    ),
)
# Checkpoint of faster-rcnn_r50_fpn_vg150.py, which has to be trained first.
load_from = 'work_dirs/faster-rcnn_r50_fpn_vg150/epoch_12.pth'
