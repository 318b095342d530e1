# The toy with a validation: the score is 1 / (1 + the mean squared error).
_base_ = ['./toy.py']
optim_wrapper = dict(_delete_=True, type='OptimWrapper', optimizer=dict(type='SGD', lr=0.02))
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=80, val_interval=80)
param_scheduler = []
custom_hooks = []
val_cfg = dict(type='ValLoop')
val_dataloader = dict(
    batch_size=4,
    dataset=dict(type='ToyData'),
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
val_evaluator = dict(type='ToyMetric')
