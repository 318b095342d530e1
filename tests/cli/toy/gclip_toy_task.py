"""A regression task that trains in milliseconds, for what needs a whole Runner but no detector."""

import os

import torch
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, HOOKS, METRICS, MODELS
from torch import nn


@MODELS.register_module()
class ToyRegressor(BaseModel):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, inputs, target, sample_idx=None, mode='tensor'):
        error = self.net(inputs) - target
        return {'loss': error.square().mean()} if mode == 'loss' else error


@DATASETS.register_module()
class ToyData(BaseDataset):
    """``size`` fixed samples; the targets are far off, so that gradients are clipped.

    The target of sample ``nan_at`` is NaN.
    """

    METAINFO = dict(classes=('a', 'b'), palette=[(1, 2, 3), (4, 5, 6)])

    def __init__(self, size=16, nan_at=None, **kwargs):
        self.size = size
        self.nan_at = nan_at
        super().__init__(**kwargs)

    def load_data_list(self):
        generator = torch.Generator().manual_seed(7)
        inputs = torch.randn(self.size, 4, generator=generator)
        samples = [dict(inputs=x, target=10 * x.sum(0, keepdim=True)) for x in inputs]
        if self.nan_at is not None:
            samples[self.nan_at]['target'] *= torch.nan
        return samples


@HOOKS.register_module()
class CrashHook(Hook):
    """Ends the process's training after ``at`` iterations as a full disk or a kill would."""

    def __init__(self, at):
        self.at = at

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == self.at:
            raise RuntimeError('crashed on purpose')


@HOOKS.register_module()
class RankHook(Hook):
    """Leaves a file a rank, as a trace of who took part."""

    def after_train(self, runner):
        name = f'rank{runner.rank}_of_{runner.world_size}'
        open(os.path.join(runner.work_dir, name), 'w').close()


@METRICS.register_module()
class ToyMetric(BaseMetric):
    """1 / (1 + mean squared error), so that more is better."""

    default_prefix = 'toy'

    def process(self, data_batch, data_samples):
        self.results += [float(error) ** 2 for error in data_samples]

    def compute_metrics(self, results):
        return {'score': 1 / (1 + sum(results) / len(results))}
