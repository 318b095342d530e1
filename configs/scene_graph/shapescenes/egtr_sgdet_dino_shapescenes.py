_base_ = [
    '../_base_/scene-graph-egtr_r18_tiny.py',
    '../_base_/shapescenes.py',
    '../_base_/tiny_schedule.py',
]
model = dict(
    detector=dict(bbox_head=dict(num_classes=10)),
    scene_head=dict(in_channels=256),  # the maps of the detector's neck
)
val_evaluator = dict(protocol='sgdet')
test_evaluator = val_evaluator
