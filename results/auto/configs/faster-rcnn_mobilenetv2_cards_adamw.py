# The playing cards with AdamW: confirms the bounds of one update, which were chosen on BCCD.
_base_ = './faster-rcnn_mobilenetv2_cards.py'
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=0.0005, weight_decay=0.05),
)
