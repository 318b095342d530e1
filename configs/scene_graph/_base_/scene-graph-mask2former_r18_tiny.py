# The tiny detector with a relation head and a scene head, trained jointly from scratch.
# It has no neck: an FPN takes the maps of its backbone, which have 16 to 128 channels.
_base_ = ['../../_base_/models/mask2former_r18_tiny.py', './heads_tiny.py']

model = dict(
    _delete_=True,
    **_base_.joint,
    detector={{_base_.model}},
    roi_extractor=dict(_base_.roi_extractor, featmap_strides=[4, 8, 16, 32]),
    graph_neck=dict(type='FPN', in_channels=[16, 32, 64, 128], out_channels=64, num_outs=4),
    relation_head={{_base_.relation_head}},
    scene_head={{_base_.scene_head}},
    train_cfg=dict(relation={{_base_.relation_train_cfg}}),
    test_cfg=dict(relation={{_base_.relation_test_cfg}}),
)
