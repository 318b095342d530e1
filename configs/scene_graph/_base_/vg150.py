# Visual Genome VG150; tools/dataset_converters/vg150.py creates the files. It has no predicate with
# left or right, so horizontal flips do not change predicates.
_base_ = './photo_graphs.py'

# ---- often changed: paths and batch --------------------------------------------------------
data_root = 'data/vg150/'
batch_size = 12  # of each GPU; the schedule is for this many images in all

# ---- rarely changed ------------------------------------------------------------------------
images = dict(img='VG_100K/')
train_dataloader = dict(
    batch_size=batch_size, dataset=dict(data_root=data_root, data_prefix=images)
)
val_dataloader = dict(dataset=dict(data_root=data_root, ann_file='val.json', data_prefix=images))
test_dataloader = dict(dataset=dict(data_root=data_root, ann_file='test.json', data_prefix=images))

val_evaluator = dict(
    train_ann_file=data_root + 'train.json',
    predicate_groups='thirds',  # head, body and tail
)
test_evaluator = val_evaluator
