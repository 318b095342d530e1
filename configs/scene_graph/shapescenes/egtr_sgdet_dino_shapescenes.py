_base_ = [
    '../_base_/scene-graph-egtr_r18_tiny.py',
    '../_base_/shapescenes.py',
    '../_base_/tiny_schedule.py',
]
model = dict(
    # The head relates all pairs of queries: 30 are enough for pictures of at most 6 objects.
    detector=dict(num_queries=30, bbox_head=dict(num_classes=10), test_cfg=dict(max_per_img=30)),
    scene_head=dict(in_channels=256),  # the maps of the detector's neck
)
val_evaluator = dict(protocol='sgdet')
test_evaluator = val_evaluator
