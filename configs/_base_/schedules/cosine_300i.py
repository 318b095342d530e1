# 300 iterations.
_base_ = './warmup_cosine.py'
train_cfg = dict(max_iters=300, val_interval=300)
