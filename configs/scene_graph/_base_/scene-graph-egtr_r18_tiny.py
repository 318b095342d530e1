# The tiny DINO with a head that reads relations from its decoder, trained jointly from scratch.
_base_ = ['../../_base_/models/dino_r18_tiny.py', './heads_tiny.py']

model = dict(
    _delete_=True,
    type='SceneGraphDetector',
    detector={{_base_.model}},
    protocol='sgdet',
    freeze_detector=False,
    detector_loss=True,
    relation_head=dict(
        type='EGTRHead', num_predicates=10, frequency_bias=dict(type='LogCountBias')
    ),
    scene_head={{_base_.scene_head}},
)
