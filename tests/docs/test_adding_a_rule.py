"""The code blocks of docs/adding_a_rule.md run, and their rules work."""

from __future__ import annotations

import re

import pytest
import torch

from gclip_mm.clipping import CLIPPERS, attach
from tests.clipping.cases import equal
from tests.docs.blocks import ROOT, blocks

PAGE = ROOT / 'docs' / 'adding_a_rule.md'
BLOCKS = [b.text for b in blocks(PAGE) if b.language == 'python' and not b.parse_only]
RULES = re.findall(r'^class (\w+Clip)\(', '\n'.join(BLOCKS), re.M)


@pytest.fixture
def registered(monkeypatch):
    """The rules of the page, registered for one test only."""
    monkeypatch.setattr(CLIPPERS, '_classes', dict(CLIPPERS._classes))
    monkeypatch.setattr(CLIPPERS, '_aliases', dict(CLIPPERS._aliases))
    exec(compile('\n'.join(BLOCKS), PAGE.name, 'exec'), dict(__name__='page'))


def test_code_blocks_run_and_assert_the_documented_result(registered):
    assert {'HalfNormClip', 'SqrtSizeClip', 'RatioClip', 'MeanClip', 'PeakClip'} == set(RULES)


@pytest.mark.parametrize('name', RULES)
def test_documented_rule_shortens_a_large_gradient_and_skips_nan(registered, name):
    weight = torch.nn.Parameter(torch.ones(4, 3))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    handle = attach(optimizer, dict(type=name, **CLIPPERS.get(name).example))
    for size in (1.0, 100.0):
        weight.grad = torch.full_like(weight, size)
        optimizer.step()
    stats = handle.stats()
    assert stats['grad_norm_post'] < stats['grad_norm']
    rule = handle.engine.config.outer
    before, state = weight.detach().clone(), rule.state_dict()
    weight.grad = torch.full_like(weight, torch.nan)
    optimizer.step()
    assert weight.equal(before)
    assert equal(rule.state_dict(), state)
