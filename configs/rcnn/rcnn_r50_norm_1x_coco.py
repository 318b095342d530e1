# R-CNN with norm clipping, since the squared error for boxes produces large spikes.
_base_ = 'rcnn_r50_1x_coco.py'

optim_wrapper = dict(
    type='GClipOptimWrapper',
    clip_grad=dict(type='NormClip', max_norm=35),
)
