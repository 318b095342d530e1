# Open Images V6 visual relationships (arXiv 1811.00982); `gclip convert openimages json` creates
# the files from those of Zhang et al. (arXiv 1903.02728) and the code after them. It has no
# predicate with left or right, so horizontal flips do not change predicates.
_base_ = './photo_graphs.py'

# ---- often changed: paths and batch --------------------------------------------------------
data_root = 'data/openimages_vrd/'
batch_size = 12  # of each GPU; the schedule is for this many images in all

# ---- rarely changed ------------------------------------------------------------------------
images = dict(img='images/')
train_dataloader = dict(
    batch_size=batch_size, dataset=dict(data_root=data_root, data_prefix=images)
)
val_dataloader = dict(dataset=dict(data_root=data_root, ann_file='val.json', data_prefix=images))
test_dataloader = dict(dataset=dict(data_root=data_root, ann_file='test.json', data_prefix=images))
