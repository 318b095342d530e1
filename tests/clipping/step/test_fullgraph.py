"""``torch.compile(step, fullgraph=True)`` is not supported; the error says what to do instead."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn

from gclip_mm import attach

pytestmark = pytest.mark.skipif(
    not hasattr(torch, 'compiler')
    or 'reason' not in inspect.signature(torch.compiler.disable).parameters,
    reason='this torch has no message for functions that are not compiled',
)


@pytest.mark.parametrize('what', ['step', 'a function that calls step'])
def test_fullgraph_raises_an_error_with_the_alternatives(what):
    # Other tests may have compiled the step so often that dynamo has given it up.
    torch._dynamo.reset()
    p = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([p], lr=0.1)
    attach(optimizer, dict(max_norm=0.1))
    p.grad = torch.ones(3)
    step = optimizer.step if what == 'step' else lambda: optimizer.step()
    compiled = torch.compile(step, fullgraph=True, backend='eager')
    with pytest.raises(Exception, match='gclip_mm clips in a hook') as caught:
        compiled()
    assert 'compile the model, or the step without fullgraph=True' in str(caught.value)
    assert (p == 1).all()


def test_step_compiled_without_fullgraph_is_clipped():
    # Other tests may have compiled the step so often that dynamo has given it up.
    torch._dynamo.reset()
    p = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([p], lr=0.1)
    handle = attach(optimizer, dict(max_norm=0.1))
    step = torch.compile(lambda: optimizer.step(), backend='eager')
    for _ in range(2):
        p.grad = torch.ones(3)
        step()
        assert handle.stats()['grad_norm_post'] == pytest.approx(0.1, rel=1e-4)
    torch.testing.assert_close(p.detach(), torch.full((3,), 1 - 0.02 / 3**0.5))
