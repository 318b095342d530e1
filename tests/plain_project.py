"""A package on MMEngine with registries of its own, as a small project would have it."""

from __future__ import annotations

from pathlib import Path

REGISTRY = """
from mmengine.registry import DATASETS as ROOT_DATASETS, MODELS as ROOT_MODELS, Registry
MODELS = Registry('model', parent=ROOT_MODELS, scope='plainlab')
DATASETS = Registry('dataset', parent=ROOT_DATASETS, scope='plainlab')
"""
#: Not imported by ``plainlab`` itself: the names are known once the scope has been registered.
PARTS = """
import torch
from mmengine.model import BaseModel
from torch.utils.data import Dataset
from .registry import DATASETS, MODELS


@MODELS.register_module()
class Plane(BaseModel):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)
        torch.nn.init.constant_(self.layer.weight, 0.5)
        torch.nn.init.zeros_(self.layer.bias)

    def forward(self, inputs, mode='tensor'):
        return dict(loss=100 * self.layer(inputs).square().mean())


@DATASETS.register_module()
class Ramp(Dataset):
    metainfo = {}

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return dict(inputs=torch.arange(3.0) + index)
"""
#: Six steps.
CONFIG = """
default_scope = 'plainlab'
model = dict(type='Plane')
train_dataloader = dict(
    batch_size=2, num_workers=0, dataset=dict(type='Ramp'),
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False))
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=3)
default_hooks = dict(logger=dict(type='LoggerHook', interval=1))
"""


def write_project(folder: Path) -> None:
    """Write the package ``plainlab`` into a folder, which then has to be on the path."""
    package = folder / 'plainlab'
    package.mkdir()
    (package / '__init__.py').write_text('')
    (package / 'registry.py').write_text(REGISTRY)
    (package / 'parts.py').write_text(PARTS)
    (package / 'utils.py').write_text('def register_all_modules():\n    from . import parts\n')
