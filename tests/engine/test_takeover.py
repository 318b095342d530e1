"""Two wrappers around one optimizer: the newer clips, and the older says so instead of stepping."""

from __future__ import annotations

import pytest
import torch

from gclip_mm import ClipConfigError, GClipOptimWrapper


def test_a_wrapper_whose_optimizer_was_taken_over_does_not_step_unclipped():
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
