_base_ = [
    '../_base_/scene-graph-rcnn_r50_fpn.py',
    '../_base_/vrd.py',
    '../_base_/vrd_schedule.py',
]
model = dict(
    roi_head=dict(bbox_head=dict(num_classes=100)),
    relation_head=dict(
        num_predicates=70,
        context=dict(type='TransformerContext', norm='pre', hidden_dim=512),
    ),
)
# Checkpoint of faster-rcnn_r50_fpn_vrd.py, which has to be trained first.
load_from = 'work_dirs/faster-rcnn_r50_fpn_vrd/epoch_12.pth'
