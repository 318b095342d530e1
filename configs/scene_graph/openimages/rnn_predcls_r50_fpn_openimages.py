# Open Images V6 as in vrd-*-anno.json: 601 classes and 30 predicates. Files that are made by
# `gclip convert openimages csv` have the classes that are related only.
_base_ = [
    '../_base_/scene-graph-rcnn_r50_fpn.py',
    '../_base_/openimages.py',
    '../_base_/openimages_schedule.py',
]
model = dict(
    roi_head=dict(bbox_head=dict(num_classes=601)),
    relation_head=dict(
        num_predicates=30,
        context=dict(type='RNNContext', cell='lstm', hidden_dim=512, dropout=0.2),
    ),
)
# Checkpoint of faster-rcnn_r50_fpn_openimages.py, which has to be trained first.
load_from = 'work_dirs/faster-rcnn_r50_fpn_openimages/epoch_12.pth'
