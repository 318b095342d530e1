# What the loaders of small data sets share. Set batch_size and dataset in the inheriting config.
train_dataloader = dict(
    num_workers=0,  # loading these images takes less time than starting a worker
    persistent_workers=False,  # True needs num_workers above 0
    sampler=dict(type='InfiniteSampler', shuffle=True),
)
val_dataloader = dict(
    num_workers=0,
    persistent_workers=False,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
)
test_dataloader = val_dataloader
