"""The recipes in configs/_base_/clip: every rule has one, and each recipe builds."""

from pathlib import Path

import pytest
import torch
from torch import nn

from gclip_mm.clipping import CLIPPERS, parse_clip_grad

pytest.importorskip('mmengine')

from mmengine.config import Config
from mmengine.optim import build_optim_wrapper

import gclip_mm  # noqa: F401

FOLDER = Path(__file__).parents[3] / 'configs' / '_base_' / 'clip'
RECIPES = sorted(FOLDER.glob('*.py'))


@pytest.mark.parametrize('path', RECIPES, ids=lambda path: path.stem)
def test_recipe_builds_and_takes_a_finite_step(path):
    config = Config.fromfile(path).optim_wrapper
    kind = 'AdamW' if path.stem == 'gradient_stabilizer' else 'SGD'
    model = nn.Linear(3, 2)
    wrapper = build_optim_wrapper(model, {**config, 'optimizer': dict(type=kind, lr=0.1)})
    before = model.weight.detach().clone()
    wrapper.update_params(model(torch.ones(4, 3)).square().mean())
    assert torch.isfinite(model.weight).all()
    assert not torch.equal(before, model.weight)


def test_every_rule_has_a_recipe():
    used = {
        type(parse_clip_grad(Config.fromfile(p).optim_wrapper.clip_grad).outer) for p in RECIPES
    }
    ours = {CLIPPERS.get(name) for name in CLIPPERS}
    assert {rule for rule in ours if rule.__module__.startswith('gclip_mm.')} <= used
