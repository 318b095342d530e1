"""A task of milliseconds that uses every random generator and names its images."""

from __future__ import annotations

import copy
import random
from typing import Any
from unittest import mock

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch import nn

from gclip_mm.engine import GClipOptimWrapper  # noqa: F401  registers the package

#: Settings with which every rule clips on this task, with a short warm-up of adaptive rules.
RULES = {
    'NormClip': dict(type='NormClip', max_norm=0.5),
    'AGC': dict(type='AGC', clip_factor=0.02),
    'AutoClip': dict(type='AutoClip', percentile=40, window=12),
    'ZClip': dict(type='ZClip', warmup_steps=4, z_threshold=0.5, max_norm=None),
    'AdaGC': dict(type='AdaGC', warmup_steps=4, rel=1.01, beta=0.9),
}


@MODELS.register_module()
class RandomNet(BaseModel):
    """Two layers and dropout; ``head`` may be left without a gradient, and the loss be L1 alone."""

    def __init__(
        self, dropout: float = 0.3, uses_head: bool = True, only_abs: bool = False
    ) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Dropout(dropout))
        self.head = nn.Linear(16, 1)
        self.uses_head = uses_head
        self.only_abs = only_abs

    def forward(self, inputs: list, data_samples: list, mode: str = 'tensor') -> Any:
        x = torch.stack([torch.as_tensor(item) for item in inputs])
        features = self.backbone(x)
        out = self.head(features) if self.uses_head else features.mean(1, keepdim=True)
        target = torch.stack([torch.as_tensor(sample.target) for sample in data_samples])
        error = out - target
        if mode == 'loss' and self.only_abs:
            return {'loss_abs': error.abs().mean()}
        if mode == 'loss':
            return {'loss_square': error.square().mean(), 'loss_abs': 0.1 * error.abs().mean()}
        return error.detach()


@DATASETS.register_module()
class RandomData(BaseDataset):
    """``size`` images of six numbers, jittered with NumPy's and Python's generators.

    ``spoiled`` maps names of images to a factor for their target, which may be ``inf``.
    """

    METAINFO = dict(classes=('a',))

    def __init__(self, size: int = 20, spoiled: dict[str, float] | None = None, **kwargs) -> None:
        self.size = size
        self.spoiled = spoiled or {}
        # MMEngine collects garbage after serialising, which takes longer than such a run.
        super().__init__(serialize_data=False, **kwargs)

    def load_data_list(self) -> list[dict]:
        generator = np.random.RandomState(3)
        x = generator.randn(self.size, 6).astype(np.float32)
        return [
            dict(inputs=row, img_path=f'images/{i:03d}.jpg', img_id=i) for i, row in enumerate(x)
        ]

    def prepare_data(self, idx: int) -> dict:
        info = self.get_data_info(idx)
        x = info['inputs'] + 0.1 * np.random.randn(6).astype(np.float32)
        target = np.float32([3 * x.sum() + random.random()])
        target *= np.float32(self.spoiled.get(info['img_path'], 1.0))
        sample = BaseDataElement(
            metainfo=dict(img_path=info['img_path'], img_id=info['img_id']), target=target
        )
        return dict(inputs=x, data_samples=sample)


@METRICS.register_module()
class MeanError(BaseMetric):
    """The mean absolute error, named as a loss."""

    def process(self, data_batch: dict, data_samples: list[torch.Tensor]) -> None:
        self.results.extend(error.abs().item() for error in data_samples)

    def compute_metrics(self, results: list) -> dict:
        return {'loss': float(np.mean(results))}


def toy_config(work_dir: str, clip_grad: dict | None = None, **changes: Any) -> Config:
    """A config of the task.

    Args:
        work_dir: where the run writes.
        clip_grad: the rule; None: none.
        **changes: top-level keys that replace the ones here; dotted ones as for ``--cfg-options``,
            with ``__`` in place of the dot.
    """
    cfg = Config(
        dict(
            model=dict(type='RandomNet'),
            train_dataloader=dict(
                batch_size=4,
                num_workers=0,
                dataset=dict(type='RandomData'),
                sampler=dict(type='InfiniteSampler', shuffle=True),
                collate_fn=dict(type='pseudo_collate'),
            ),
            optim_wrapper=dict(
                type='GClipOptimWrapper',
                optimizer=dict(type='SGD', lr=0.02, momentum=0.9),
                clip_grad=clip_grad,
            ),
            param_scheduler=[
                dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=6)
            ],
            train_cfg=dict(type='IterBasedTrainLoop', max_iters=24),
            default_hooks=dict(
                logger=dict(type='LoggerHook', interval=2),
                checkpoint=dict(
                    type='GClipCheckpointHook', interval=5, by_epoch=False, max_keep_ckpts=1
                ),
            ),
            custom_hooks=[dict(type='GClipRNGStateHook')],
            randomness=dict(seed=0),
            visualizer=dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')]),
            default_scope='mmengine',
            log_level='WARNING',
            work_dir=str(work_dir),
            # One message hub per run: MMEngine shares it among runs of one name.
            experiment_name=str(work_dir).replace('/', '_'),
        )
    )
    # Merging removes marks such as _delete_ from its argument.
    changes = copy.deepcopy(changes)
    cfg.merge_from_dict({key.replace('__', '.'): value for key, value in changes.items()})
    return cfg


def as_it_is(text: str, **_: Any) -> tuple[str, bool]:
    """Replaces yapf, whose formatting of the config takes three quarters of such a run."""
    return text, True


def run_toy(work_dir: str, clip_grad: dict | None = None, **changes: Any) -> Runner:
    """Train the task; returns the runner."""
    with mock.patch('mmengine.config.config.FormatCode', as_it_is):
        runner = Runner.from_cfg(toy_config(work_dir, clip_grad, **changes))
        runner.train()
    return runner
