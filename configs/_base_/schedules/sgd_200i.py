# 200 iterations.
_base_ = './warmup_cosine.py'
train_cfg = dict(max_iters=200, val_interval=200)
