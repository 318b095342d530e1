_base_ = [
    '../_base_/scene-graph-rcnn_r50_fpn.py',
    '../_base_/openimages.py',
    '../_base_/openimages_schedule.py',
]
model = dict(
    roi_head=dict(bbox_head=dict(num_classes=601)),
    relation_head=dict(
        num_predicates=30,
        context=dict(type='TransformerContext', norm='pre', hidden_dim=512),
    ),
)
# Checkpoint of faster-rcnn_r50_fpn_openimages.py, which has to be trained first.
load_from = 'work_dirs/faster-rcnn_r50_fpn_openimages/epoch_12.pth'
