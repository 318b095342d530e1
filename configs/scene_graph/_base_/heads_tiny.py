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
# Detector, relation head and scene head learn together, from scratch.
joint = dict(type='SceneGraphDetector', protocol='sgdet', freeze_detector=False, detector_loss=True)
# Set featmap_strides: those of the maps that the heads read.
roi_extractor = dict(
    type='SingleRoIExtractor',
    roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=1),
    out_channels=64,
    finest_scale=28,
)
relation_train_cfg = dict(sampler=dict(type='PairSampler', num=32, pos_fraction=0.25))
relation_test_cfg = dict(max_objects=12)
