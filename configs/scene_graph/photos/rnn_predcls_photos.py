# Relations among the given objects of your own photos; some minutes of training on a CPU.
# The inheriting config sets num_classes, num_predicates and the paths: see README.md.
_base_ = [
    '../_base_/scene-graph-rcnn_r18_tiny.py',
    '../_base_/photos.py',
    '../_base_/tiny_schedule.py',
]
model = dict(
    relation_head=dict(
        context=dict(type='RNNContext', cell='lstm', hidden_dim=128),
        dropout=0.2,  # a few dozen photos are learned by heart otherwise
    ),
    scene_head=None,  # with a column "scene": a SceneHead, as in README.md
    test_cfg=dict(relation=dict(max_objects=40)),
)
max_iters = 400
train_cfg = dict(max_iters=max_iters, val_interval=100)
param_scheduler = [_base_.param_scheduler[0], dict(_base_.param_scheduler[1], end=max_iters)]
default_hooks = dict(checkpoint=dict(save_best='sg/mR@20', rule='greater'))
