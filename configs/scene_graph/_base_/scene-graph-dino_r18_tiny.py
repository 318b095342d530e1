# The tiny detector with a relation head and a scene head, trained jointly from scratch.
# Both levels of its neck have 256 channels; a convolution reduces them.
_base_ = ['../../_base_/models/dino_r18_tiny.py', './heads_tiny.py']

model = dict(
    _delete_=True,
    **_base_.joint,
    detector={{_base_.model}},
    roi_extractor=dict(_base_.roi_extractor, featmap_strides=[16, 32]),
    graph_neck=dict(type='ChannelMapper', in_channels=[256, 256], out_channels=64, kernel_size=1),
    relation_head={{_base_.relation_head}},
    scene_head={{_base_.scene_head}},
    train_cfg=dict(relation={{_base_.relation_train_cfg}}),
    test_cfg=dict(relation={{_base_.relation_test_cfg}}),
)
