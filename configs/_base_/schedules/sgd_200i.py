# The schedule of cosine_300i, with 200 iterations.
_base_ = './cosine_300i.py'

max_iters = 200
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
param_scheduler = [_base_.param_scheduler[0], dict(_base_.param_scheduler[1], end=max_iters)]
