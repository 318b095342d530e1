# Visual Relationship Detection (arXiv 1608.00187); `gclip convert vrd` creates the files. There is
# no validation split.
_base_ = './photo_graphs.py'

# ---- often changed: paths and batch --------------------------------------------------------
data_root = 'data/vrd/'
batch_size = 12  # of each GPU; the schedule is for this many images in all

# ---- rarely changed ------------------------------------------------------------------------
images = dict(img='sg_dataset/')
# A horizontal flip swaps these.
metainfo = dict(flip_predicate_pairs=[('on the left of', 'on the right of')])
train_dataloader = dict(
    batch_size=batch_size, dataset=dict(data_root=data_root, data_prefix=images, metainfo=metainfo)
)
val_dataloader = dict(
    dataset=dict(data_root=data_root, ann_file='test.json', data_prefix=images, metainfo=metainfo)
)
test_dataloader = val_dataloader

val_evaluator = dict(train_ann_file=data_root + 'train.json')
test_evaluator = val_evaluator
