"""Two wrappers around one optimizer: the newer one clips, and the older one refuses to step."""

from __future__ import annotations

import copy

import pytest
import torch

from gclip_mm import ClipConfigError, GClipOptimWrapper, attach


def test_replaced_wrapper_refuses_to_step():
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    old = GClipOptimWrapper(optimizer, clip_grad=dict(max_norm=1))
    new = GClipOptimWrapper(optimizer, clip_grad=dict(max_norm=2))
    model(torch.ones(1, 2)).sum().backward()
    before = model.weight.detach().clone()
    with pytest.raises(ClipConfigError, match='newer wrapper'):
        old.step()
    assert torch.equal(model.weight, before)
    new.step()
    assert new.engine.steps == 1


def test_wrapper_does_not_replace_an_engine_of_another_owner():
    optimizer = torch.optim.SGD(torch.nn.Linear(2, 2).parameters(), lr=0.1)
    attach(optimizer, dict(max_norm=1))
    with pytest.raises(ClipConfigError, match='clipped already'):
        GClipOptimWrapper(optimizer, clip_grad=dict(max_norm=2))


def test_engine_of_a_wrapper_names_it_as_owner():
    optimizer = torch.optim.SGD(torch.nn.Linear(2, 2).parameters(), lr=0.1)
    wrapper = GClipOptimWrapper(optimizer, clip_grad=dict(max_norm=1))
    assert wrapper.engine.owner is wrapper
    assert copy.deepcopy(wrapper).engine.owner is not wrapper
