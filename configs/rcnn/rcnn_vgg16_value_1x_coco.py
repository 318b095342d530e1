# R-CNN with value clipping.
_base_ = 'rcnn_vgg16_1x_coco.py'

optim_wrapper = dict(
    type='GClipOptimWrapper',
    clip_grad=dict(type='ValueClip', clip_value=0.1),
)
