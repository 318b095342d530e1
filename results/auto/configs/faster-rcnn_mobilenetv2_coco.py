# Faster R-CNN on photos of COCO, class person, with the backbone of the playing cards.
# The photos and the weights are named on the command line (results/auto/README.md).
_base_ = './faster-rcnn_mobilenetv2_cards.py'
model = dict(roi_head=dict(bbox_head=dict(num_classes=1)))
photos = dict(data_root='data/coco128/', metainfo=dict(classes=('person',)))
train_dataloader = dict(
    dataset=dict(**photos, ann_file='instances_train.json', data_prefix=dict(img='train2017/'))
)
val_dataloader = dict(
    dataset=dict(**photos, ann_file='instances_val.json', data_prefix=dict(img='val2017/'))
)
test_dataloader = val_dataloader
