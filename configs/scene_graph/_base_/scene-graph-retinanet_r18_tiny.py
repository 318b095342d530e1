# The tiny detector with a relation head and a scene head, trained jointly from scratch.
# Relations on the three levels of its FPN.
_base_ = ['../../_base_/models/retinanet_r18_tiny.py', './heads_tiny.py']

model = dict(
    _delete_=True,
    **_base_.joint,
    detector={{_base_.model}},
    roi_extractor=dict(_base_.roi_extractor, featmap_strides=[8, 16, 32]),
    relation_head={{_base_.relation_head}},
    scene_head={{_base_.scene_head}},
    train_cfg=dict(relation={{_base_.relation_train_cfg}}),
    test_cfg=dict(relation={{_base_.relation_test_cfg}}),
)
