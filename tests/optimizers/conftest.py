"""Optimizers that compile themselves run uncompiled here: it is the loop that is tested."""

import pytest
import torch


@pytest.fixture(autouse=True, scope='package')
def _uncompiled():
    torch.compiler.set_stance('force_eager')
    yield
    torch.compiler.set_stance('default')
