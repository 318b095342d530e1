# The tiny Faster R-CNN with a relation head and a scene head, trained jointly from scratch.
_base_ = ['../../_base_/models/faster-rcnn_r18_tiny.py']

model = dict(
    type='SceneGraphRCNN',
    protocol='predcls',
    freeze_detector=False,
    detector_loss=False,  # the boxes are given, so nothing trains the detector's own heads
    roi_head=dict(bbox_head=dict(num_classes=10)),
    relation_head=dict(
        type='RelationHead',
        num_predicates=10,
        context=dict(type='IdentityContext'),
        union=dict(mask_channels=32, mask_scale=2),
        frequency_bias=dict(type='FrequencyBias'),
        fc_dim=128,
        embed_dim=32,
        geometry_dim=32,
    ),
    scene_head=dict(
        type='SceneHead', num_scenes=6, in_channels=64, in_levels=(0, 3), hidden_dim=64
    ),
    train_cfg=dict(relation=dict(sampler=dict(type='PairSampler', num=64, pos_fraction=0.25))),
    test_cfg=dict(relation=dict(max_objects=12)),  # the best detections of an image
)
