"""The units of AGC for each module class, against a hand-written loop over the outputs."""

import numpy as np
import pytest
import torch
from torch import nn

from gclip_mm import attach
from gclip_mm.clipping.gradients.units import unit_layout


def by_output_first(shape, module):
    """One unit per index of the first axis."""
    return [(i,) for i in range(shape[0])]


def whole(shape, module):
    return [(...,)]


def transposed(shape, module):
    """Units of a (in, out / groups, *kernel) weight: output k of g gets the inputs of group g."""
    inputs = shape[0] // module.groups
    return [
        (slice(g * inputs, (g + 1) * inputs), k)
        for g in range(module.groups)
        for k in range(shape[1])
    ]


CASES = {
    'Linear': (lambda: nn.Linear(5, 4), dict(weight=by_output_first, bias=whole)),
    'Linear to one': (lambda: nn.Linear(5, 1), dict(weight=whole, bias=whole)),
    'Linear from one': (lambda: nn.Linear(1, 5), dict(weight=whole, bias=whole)),
    'Conv1d': (lambda: nn.Conv1d(3, 4, 3), dict(weight=by_output_first, bias=whole)),
    'Conv2d': (lambda: nn.Conv2d(3, 4, 3), dict(weight=by_output_first, bias=whole)),
    'Conv2d 1x1': (lambda: nn.Conv2d(3, 4, 1), dict(weight=by_output_first, bias=whole)),
    'Conv3d': (lambda: nn.Conv3d(2, 4, 3), dict(weight=by_output_first, bias=whole)),
    'Conv2d grouped': (
        lambda: nn.Conv2d(6, 4, 3, groups=2),
        dict(weight=by_output_first, bias=whole),
    ),
    'Conv2d depthwise': (
        lambda: nn.Conv2d(4, 4, 3, groups=4),
        dict(weight=by_output_first, bias=whole),
    ),
    'Conv1d depthwise': (
        lambda: nn.Conv1d(4, 8, 3, groups=4),
        dict(weight=by_output_first, bias=whole),
    ),
    'ConvTranspose1d': (lambda: nn.ConvTranspose1d(3, 4, 3), dict(weight=transposed, bias=whole)),
    'ConvTranspose2d': (lambda: nn.ConvTranspose2d(3, 4, 3), dict(weight=transposed, bias=whole)),
    'ConvTranspose3d': (lambda: nn.ConvTranspose3d(3, 4, 2), dict(weight=transposed, bias=whole)),
    'ConvTranspose1d grouped': (
        lambda: nn.ConvTranspose1d(6, 4, 3, groups=2),
        dict(weight=transposed, bias=whole),
    ),
    'ConvTranspose2d grouped': (
        lambda: nn.ConvTranspose2d(6, 9, 3, groups=3),
        dict(weight=transposed, bias=whole),
    ),
    'ConvTranspose3d grouped': (
        lambda: nn.ConvTranspose3d(4, 4, 2, groups=2),
        dict(weight=transposed, bias=whole),
    ),
    'ConvTranspose2d depthwise': (
        lambda: nn.ConvTranspose2d(4, 4, 2, groups=4),
        dict(weight=transposed, bias=whole),
    ),
    'MultiheadAttention': (
        lambda: nn.MultiheadAttention(6, 2, add_bias_kv=True),
        {
            'in_proj_weight': by_output_first,
            'in_proj_bias': whole,
            'bias_k': whole,
            'bias_v': whole,
            'out_proj.weight': by_output_first,
            'out_proj.bias': whole,
        },
    ),
    'MultiheadAttention unpacked': (
        lambda: nn.MultiheadAttention(6, 2, kdim=4, vdim=5, bias=False),
        {
            'q_proj_weight': by_output_first,
            'k_proj_weight': by_output_first,
            'v_proj_weight': by_output_first,
            'out_proj.weight': by_output_first,
        },
    ),
    'Embedding': (lambda: nn.Embedding(7, 3), dict(weight=by_output_first)),
    'Embedding of width one': (lambda: nn.Embedding(7, 1), dict(weight=whole)),
    'LayerNorm': (lambda: nn.LayerNorm(5), dict(weight=whole, bias=whole)),
    'LayerNorm of images': (
        lambda: nn.LayerNorm((3, 4)),
        dict(weight=by_output_first, bias=by_output_first),
    ),
    'BatchNorm2d': (lambda: nn.BatchNorm2d(5), dict(weight=whole, bias=whole)),
    'GroupNorm': (lambda: nn.GroupNorm(2, 4), dict(weight=whole, bias=whole)),
    'LSTM': (
        lambda: nn.LSTM(3, 4, proj_size=2),
        {
            'weight_ih_l0': by_output_first,
            'weight_hh_l0': by_output_first,
            'bias_ih_l0': whole,
            'bias_hh_l0': whole,
            'weight_hr_l0': by_output_first,
        },
    ),
    'Bilinear': (lambda: nn.Bilinear(3, 4, 5), dict(weight=by_output_first, bias=whole)),
    'PReLU': (lambda: nn.PReLU(4), dict(weight=whole)),
    # Reparametrised layers keep the layout of the weight under another name in another module.
    'spectral_norm': (
        lambda: nn.utils.parametrizations.spectral_norm(nn.ConvTranspose2d(3, 4, 3, bias=False)),
        {'parametrizations.weight.original': transposed},
    ),
    'weight_norm': (
        lambda: nn.utils.parametrizations.weight_norm(
            nn.ConvTranspose2d(6, 4, 3, groups=2, bias=False)
        ),
        {
            'parametrizations.weight.original0': whole,
            'parametrizations.weight.original1': transposed,
        },
    ),
    'spectral_norm of old': (
        lambda: nn.utils.spectral_norm(nn.ConvTranspose2d(3, 4, 3, bias=False)),
        {'weight_orig': transposed},
    ),
    'spectral_norm of a convolution': (
        lambda: nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 4, 3, bias=False)),
        {'parametrizations.weight.original': by_output_first},
    ),
}


class Inner(nn.Module):
    """A model that contains the layer next to others."""

    def __init__(self, layer):
        super().__init__()
        self.neck = nn.ModuleDict({'layer': layer})
        self.other = nn.Linear(2, 2)


def loop_over_units(w, g, units, clip_factor=0.01, eps=1e-3):
    w, g, out = (x.detach().double().numpy() for x in (w, g, g.clone()))
    for unit in units:
        norm = np.sqrt((g[unit] ** 2).sum())
        limit = clip_factor * max(np.sqrt((w[unit] ** 2).sum()), eps)
        if norm > limit:
            out[unit] = g[unit] * (limit / max(norm, 1e-6))
    return out


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('case', CASES)
def test_agc_units_match_a_loop_over_the_outputs(case):
    build, kinds = CASES[case]
    torch.manual_seed(0)
    layer = build()
    params = dict(layer.named_parameters())
    assert params.keys() == kinds.keys()
    rng = torch.Generator().manual_seed(1)
    expected = {}
    for name, p in params.items():
        with torch.no_grad():
            # The units differ widely in size, so that a wrong axis is detected.
            p.copy_(torch.randn(p.shape, generator=rng) * torch.rand(p.shape, generator=rng) * 3)
        p.grad = torch.randn(p.shape, generator=rng) * 10 ** torch.randn(p.shape, generator=rng)
        p.grad += p.grad.sign()
        owner = layer
        expected[name] = loop_over_units(p, p.grad, kinds[name](tuple(p.shape), owner))
    model = Inner(layer)
    optimizer = torch.optim.SGD(params.values(), lr=0.0)
    attach(optimizer, dict(type='AGC', clip_factor=0.01), model=model)
    before = {name: p.grad.clone() for name, p in params.items()}
    optimizer.step()
    for name, p in params.items():
        np.testing.assert_allclose(p.grad.double().numpy(), expected[name], rtol=2e-6, err_msg=name)
        assert not torch.equal(p.grad, before[name])


def test_units_follow_the_shape_when_there_is_no_model():
    """As in the NFNets definition; a transposed convolution is then read as a plain one."""
    for shape, units in [((), 1), ((4,), 1), ((4, 1), 1), ((1, 4), 1), ((1, 1, 4), 1)]:
        assert unit_layout(torch.zeros(shape)).dims is None, units
    for shape in [(3, 4), (3, 4, 5), (3, 1, 5), (3, 4, 2, 2), (1, 3, 4)]:
        layout = unit_layout(torch.zeros(shape))
        assert layout.norms(torch.ones(shape)).numel() == shape[0]


def test_parameter_shared_by_two_modules_is_clipped_once():
    embedding = nn.Embedding(5, 3)
    head = nn.Linear(3, 5, bias=False)
    head.weight = embedding.weight
    model = nn.Sequential(embedding, head)
    model(torch.tensor([0, 2])).sum().backward()
    grad = embedding.weight.grad.clone() * 100
    embedding.weight.grad.mul_(100)
    want = loop_over_units(embedding.weight, grad, [(i,) for i in range(5)])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    attach(optimizer, dict(type='AGC'), model=model)
    optimizer.step()
    np.testing.assert_allclose(embedding.weight.grad.double().numpy(), want, rtol=2e-6)
