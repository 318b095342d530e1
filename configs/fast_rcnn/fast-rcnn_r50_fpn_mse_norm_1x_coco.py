# Fast R-CNN with the squared error for boxes and the cross entropy for classes, with norm clipping.
# A squared error has no bound on its gradient, which the L1 losses of the stock configs have.
_base_ = 'fast-rcnn_r50_fpn_norm_1x_coco.py'

model = dict(
    roi_head=dict(bbox_head=dict(loss_bbox=dict(_delete_=True, type='MSELoss', loss_weight=1.0)))
)
