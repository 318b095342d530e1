# R-CNN with VGG-16, as in the paper's table of larger networks: two fully connected layers of 4096
# between the convolutions and the outputs.
_base_ = 'rcnn_r50_1x_coco.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='VGG',
        depth=16,
        frozen_stages=2,
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://vgg16'),
    ),
    roi_head=dict(
        bbox_head=dict(
            type='Shared2FCBBoxHead', with_avg_pool=False, in_channels=512, fc_out_channels=4096
        )
    ),
)
# Without batch norm, and with a squared error, it needs a lower learning rate than ResNet-50.
optim_wrapper = dict(optimizer=dict(lr=0.002))
