# Relation head and scene head of the tiny models on detectors other than Faster R-CNN. A config
# with a detector refers to these values.
relation_head = dict(
    type='RelationHead',
    num_predicates=10,
    context=dict(type='IdentityContext'),
    union=dict(mask_channels=32, mask_scale=2),
    frequency_bias=dict(type='FrequencyBias'),
    fc_dim=128,
    embed_dim=32,
    geometry_dim=32,
)
scene_head = dict(type='SceneHead', num_scenes=6, in_channels=64, in_levels=(0, -1), hidden_dim=64)
relation_train_cfg = dict(sampler=dict(type='PairSampler', num=32, pos_fraction=0.25))
relation_test_cfg = dict(max_objects=12)
