# Panoptic Scene Graphs (arXiv 2207.11247) with boxes; tools/dataset_converters/psg.py creates the
# files.
_base_ = './photo_graphs.py'

# ---- often changed: paths and batch --------------------------------------------------------
data_root = 'data/psg/'
batch_size = 16  # of each GPU; the schedule is for this many images in all
scale = (1333, 800)

# ---- rarely changed ------------------------------------------------------------------------
train_pipeline = [
    *_base_.load_steps,
    dict(type='Resize', scale=scale, keep_ratio=True),
    # PSG has no predicate with left or right, so horizontal flips do not change predicates.
    *_base_.augment_steps,
]
test_pipeline = [
    *_base_.load_steps,
    dict(type='Resize', scale=scale, keep_ratio=True),
    _base_.pack_for_test,
]
images = dict(img='coco/')
train_dataloader = dict(
    batch_size=batch_size,
    sampler=dict(type='DefaultSampler', shuffle=True),  # the schedule counts epochs
    dataset=dict(data_root=data_root, data_prefix=images, pipeline=train_pipeline),
)
val_dataloader = dict(
    dataset=dict(
        data_root=data_root, ann_file='test.json', data_prefix=images, pipeline=test_pipeline
    )
)
test_dataloader = val_dataloader

val_evaluator = dict(
    train_ann_file=data_root + 'train.json',
    predicate_groups='thirds',  # head, body and tail
)
test_evaluator = val_evaluator
