"""Sparse and complex gradients: unchanged if exempt, otherwise refused and named."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from gclip_mm import CLIPPERS, ClipConfigError, attach


class Words(nn.Module):
    """An embedding with sparse gradients, a complex filter, and a linear layer."""

    def __init__(self, sparse=True):
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(6, 3, sparse=sparse)
        self.filter = nn.Parameter(torch.ones(3, dtype=torch.complex64))
        self.out = nn.Linear(3, 2)

    def forward(self, index):
        spectrum = self.words(index) * self.filter
        return self.out(spectrum.real + spectrum.imag)


EXCLUDE = ['^words', '^filter$']


def backward(model, factor=1.0):
    # Index 1 occurs twice, so the gradient is not coalesced.
    (model(torch.tensor([1, 4, 1])).square().sum() * factor).backward()


def dense(grad):
    return grad.to_dense() if grad.is_sparse else grad


@pytest.mark.parametrize('rule', ['NormClip', 'ParamNormClip', 'ValueClip', 'AGC', 'AutoClip'])
def test_exempt_gradients_are_measured_and_not_changed(rule):
    model, plain = Words(), Words()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    config = dict(type=rule, **CLIPPERS.get(rule).example, exclude=EXCLUDE)
    handle = attach(optimizer, config, model=model)
    for _ in range(2):
        optimizer.zero_grad()
        plain.load_state_dict(model.state_dict())
        plain.zero_grad()
        backward(model)
        backward(plain)
        optimizer.step()
        total = 0.0
        for (name, param), other in zip(model.named_parameters(), plain.parameters(), strict=True):
            total += dense(other.grad).abs().double().square().sum().item()
            if not name.startswith('out'):
                assert torch.equal(dense(param.grad), dense(other.grad))
        assert handle.stats()['grad_norm'] == pytest.approx(math.sqrt(total), rel=1e-5)


@pytest.mark.parametrize('policy', ['skip', 'zero'])
def test_nonfinite_exempt_gradient_follows_the_policy(policy):
    model = Words()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = attach(optimizer, dict(max_norm=1e9, exclude=EXCLUDE, nonfinite=policy), model=model)
    backward(model)
    model.words.weight.grad._values()[1] = math.inf
    model.filter.grad[0] = complex(1.0, math.nan)
    optimizer.step()
    assert handle.stats()['nonfinite'] == 1
    now = model.state_dict()
    assert all(value.isfinite().all() for value in now.values())
    moved = {name for name, value in now.items() if not torch.equal(value, before[name])}
    assert moved == (set() if policy == 'skip' else set(now))


def test_sparse_gradient_after_a_dense_one_raises_and_is_named():
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attach(optimizer, dict(max_norm=1.0), model=model)
    for sparse in (False, True):
        model[0].sparse = sparse
        optimizer.zero_grad()
        model(torch.tensor([1])).sum().backward()
        if not sparse:
            optimizer.step()
    with pytest.raises(ClipConfigError, match=r"0\.weight is sparse.*exclude=\[r'\^0\\\.weight\$'"):
        optimizer.step()


def test_exempt_gradient_may_alternate_between_dense_and_sparse():
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = attach(optimizer, dict(max_norm=1.0, exclude=['^0']), model=model)
    for sparse in (False, True, False, True):
        model[0].sparse = sparse
        optimizer.zero_grad()
        model(torch.tensor([1])).sum().backward()
        expected = math.sqrt(sum(float(dense(p.grad).square().sum()) for p in model.parameters()))
        optimizer.step()
        assert handle.stats()['grad_norm'] == pytest.approx(expected)


def test_complex_gradient_that_is_not_exempt_raises_and_is_named():
    model = Words(sparse=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attach(optimizer, dict(max_norm=1.0, exclude=['^words']), model=model)
    backward(model)
    for _ in range(2):
        with pytest.raises(ClipConfigError, match='filter is complex.*exempt it'):
            optimizer.step()
