# The tiny Faster R-CNN of configs/bccd with AdamW in place of SGD.
_base_ = '../../../configs/bccd/faster-rcnn_p3_tiny_bccd.py'
optim_wrapper = dict(optimizer=dict(_delete_=True, type='AdamW', lr=1e-3, weight_decay=1e-4))
