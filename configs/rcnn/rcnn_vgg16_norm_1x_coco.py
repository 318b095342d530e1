# R-CNN with norm clipping: a squared error grows with the square of a miss, and so do its spikes.
_base_ = 'rcnn_vgg16_1x_coco.py'

optim_wrapper = dict(
    type='GClipOptimWrapper',
    clip_grad=dict(type='NormClip', max_norm=35),
)
