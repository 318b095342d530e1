"""MMDetection's configs of Detectron2 models take a clipping recipe."""

from __future__ import annotations

from pathlib import Path

import mmdet
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper

from gclip_mm import apply_clip

MISC = Path(mmdet.__file__).parent / '.mim' / 'configs' / 'misc'
CONFIGS = sorted(MISC.glob('d2_*.py'))


def test_mmdet_ships_three_detectron2_configs():
    assert len(CONFIGS) == 3


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
@pytest.mark.parametrize('rule', ['value', 'norm', 'agc'])
def test_recipe_replaces_wrapper_and_keeps_optimizer(path, rule):
    cfg = Config.fromfile(str(path))
    stock = dict(cfg.optim_wrapper.optimizer)
    apply_clip(cfg, rule)
    assert cfg.model.type == 'Detectron2Wrapper'
    assert cfg.optim_wrapper.optimizer == stock
    # Building the wrapper does not need Detectron2: any model can replace d2_model.
    wrapper = build_optim_wrapper(
        torch.nn.ModuleDict({'d2_model': torch.nn.Linear(2, 2)}), cfg.optim_wrapper
    )
    assert type(wrapper).__name__ == 'GClipOptimWrapper'
    assert wrapper.engine is not None
