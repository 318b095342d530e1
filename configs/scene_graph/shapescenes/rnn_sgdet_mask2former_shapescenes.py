_base_ = [
    '../_base_/scene-graph-mask2former_r18_tiny.py',
    '../_base_/shapescenes.py',
    '../_base_/tiny_schedule.py',
]
num_classes = 10
model = dict(
    detector=dict(
        panoptic_head=dict(
            num_things_classes=num_classes,
            loss_cls=dict(class_weight=[1.0] * num_classes + [0.1]),
        ),
        panoptic_fusion_head=dict(num_things_classes=num_classes),
    ),
    relation_head=dict(context=dict(type='RNNContext', cell='lstm', hidden_dim=128)),
)
# It learns from masks.
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadSceneGraphAnnotations', with_mask=True),
    dict(type='Resize', scale={{_base_.params.image_size}}, keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSceneGraphInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_evaluator = dict(protocol='sgdet')
test_evaluator = val_evaluator
