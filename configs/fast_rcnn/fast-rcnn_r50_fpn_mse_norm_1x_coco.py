# Fast R-CNN with squared error for boxes and cross entropy for classes, with norm clipping.
# The gradient of a squared error is unbounded; that of the stock configs' L1 losses is bounded.
_base_ = 'fast-rcnn_r50_fpn_norm_1x_coco.py'

model = dict(
    roi_head=dict(bbox_head=dict(loss_bbox=dict(_delete_=True, type='MSELoss', loss_weight=1.0)))
)
