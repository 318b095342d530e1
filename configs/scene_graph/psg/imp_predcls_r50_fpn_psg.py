_base_ = [
    '../_base_/scene-graph-rcnn_r50_fpn.py',
    '../_base_/psg.py',
    '../_base_/psg_schedule.py',
]
model = dict(
    roi_head=dict(bbox_head=dict(num_classes=133)),
    relation_head=dict(
        num_predicates=56,
        context=dict(type='IMPContext', hidden_dim=512),
    ),
)
# Checkpoint of faster-rcnn_r50_fpn_psg.py, which has to be trained first.
load_from = 'work_dirs/faster-rcnn_r50_fpn_psg/epoch_12.pth'
