"""Every rule on a GPU: no host reads, few launches, and the same results as on the CPU."""

from __future__ import annotations

import contextlib
import copy
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gclip_mm import attach
from gclip_mm.clipping import kernels
from tests.clipping.cases import CASES, make_optimizer

if not torch.cuda.is_available():
    pytest.skip('needs a CUDA GPU', allow_module_level=True)

CUDA = torch.device('cuda')
#: Rules that measure and scale each tensor or each unit separately.
PIECEWISE = ['AGC', 'ParamNormClip', 'BlockRMSClip', 'AdaGC', 'GradientStabilizer']


class Net(nn.Module):
    """Every kind of unit, and ``depth`` equal layers."""

    def __init__(self, depth: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.GroupNorm(2, 8)
        self.up = nn.ConvTranspose2d(8, 6, 2, groups=2)
        self.line = nn.Linear(2000, 3)
        self.layers = nn.ModuleList(nn.Linear(40, 40) for _ in range(depth))


def gradients(model: nn.Module, step: int) -> list[Tensor]:
    """Gradients that most rules clip in part, equal on all devices."""
    generator = torch.Generator().manual_seed(step)
    return [
        (torch.randn(p.shape, generator=generator) * 10.0 ** ((k + step) % 3 - 2)).to(p.device)
        for k, p in enumerate(model.parameters())
    ]


def take_step(model: nn.Module, optimizer: Optimizer, grads: list[Tensor]) -> None:
    for param, grad in zip(model.parameters(), grads, strict=True):
        param.grad = grad
    optimizer.step()


@contextlib.contextmanager
def no_waiting() -> Iterator[None]:
    """Raise an error for every operation that makes the host wait for the device."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode('error')
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode('default')


def launches(model: nn.Module, optimizer: Optimizer, grads: list[Tensor]) -> Counter:
    """Count the launches of each kernel in one step, without copies and fills of memory."""
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        take_step(model, optimizer, grads)
        torch.cuda.synchronize()
    names = [e.name for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    return Counter(name for name in names if not name.startswith(('Memcpy', 'Memset')))


def test_no_waiting_detects_a_host_read():
    number = torch.ones(1, device=CUDA)
    with pytest.raises(RuntimeError), no_waiting():
        number.item()


@pytest.mark.parametrize('with_kernels', [True, False], ids=['kernels', 'ordinary'])
@pytest.mark.parametrize('name', CASES)
def test_rule_steps_without_waiting_for_the_device(name, with_kernels, monkeypatch):
    if not with_kernels:
        monkeypatch.setattr(kernels, '_device_types', set())
    model = Net().to(CUDA)
    optimizer = make_optimizer(CASES[name], model.parameters(), fused=True)
    steps = [gradients(model, step) for step in range(12)]
    # A nonfinite step must also be detected and skipped without a host read.
    steps[9][0][0] = float('nan')
    with attach(optimizer, CASES[name], model=model) as handle:
        # The first steps create buffers and compile kernels.
        for grads in steps[:6]:
            take_step(model, optimizer, grads)
        with no_waiting():
            for grads in steps[6:]:
                take_step(model, optimizer, grads)
        assert handle.stats()['grad_norm'] > 0
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize('name', CASES)
def test_weights_and_records_equal_those_of_the_cpu(name):
    """Both devices take the same steps from the same initial state."""
    torch.manual_seed(0)
    model = Net()
    found: dict[str, tuple[list[Tensor], list[dict[str, Any]]]] = {}
    for device in ('cpu', 'cuda'):
        twin = copy.deepcopy(model).to(device)
        optimizer = make_optimizer(CASES[name], twin.parameters(), fused=True)
        with attach(optimizer, CASES[name], model=twin) as handle:
            records = []
            for step in range(8):
                take_step(twin, optimizer, gradients(twin, step))
                records.append(handle.stats())
        found[device] = [p.detach().cpu() for p in twin.parameters()], records
    torch.testing.assert_close(found['cuda'][0], found['cpu'][0], rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(found['cuda'][1], found['cpu'][1], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize('name', PIECEWISE)
def test_unit_rule_launches_two_kernels_for_any_number_of_tensors(name):
    pytest.importorskip('triton')
    counts = []
    for depth in (4, 40):
        model = Net(depth).to(CUDA)
        optimizer = make_optimizer(CASES[name], model.parameters(), fused=True)
        with attach(optimizer, CASES[name], model=model):
            for step in range(3):
                take_step(model, optimizer, gradients(model, step))
            seen = launches(model, optimizer, gradients(model, 3))
        assert [seen['_measure'], seen['_scale']] == [1, 1]
        # The number of launches of the optimizer's kernel depends on the number of tensors.
        counts.append(sum(n for kernel, n in seen.items() if 'multi_tensor_apply' not in kernel))
    assert counts[0] == counts[1]


class Many(nn.Module):
    """156 tensors, as in a ResNet-50-FPN Faster R-CNN, some of them large."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64 + 20 * k, 64) for k in range(77))
        self.large = nn.Linear(3000, 3000)


#: The rules that have a decision kernel.
NORM_RULES = {name: CASES[name] for name in ('NormClip', 'NormClip min', 'NormClip inf')}
NORM_RULES['NormClip 3'] = dict(type='NormClip', max_norm=0.5, norm_type=3)
NORM_RULES |= {name: CASES[name] for name in ('ZClip', 'AutoClip')}


@pytest.mark.parametrize('scaled', [False, True])
@pytest.mark.parametrize('fused', ['SGD', 'AdamW'])
@pytest.mark.parametrize('name', NORM_RULES)
def test_norm_rule_adds_at_most_ten_launches_to_the_fused_step(name, fused, scaled):
    pytest.importorskip('triton')
    model, config = Many().to(CUDA), NORM_RULES[name]
    assert len(list(model.parameters())) == 156
    seen = {}
    for clips in (True, False):
        twin = copy.deepcopy(model)
        optimizer = make_optimizer(
            NORM_RULES[name], twin.parameters(), sgd=fused == 'SGD', fused=True
        )
        with attach(optimizer, config) if clips else contextlib.nullcontext():
            for step in range(4):
                if scaled:
                    optimizer.grad_scale = torch.tensor(8.0, device=CUDA)
                    optimizer.found_inf = torch.tensor(0.0, device=CUDA)
                if step < 3:
                    take_step(twin, optimizer, gradients(twin, step))
                else:
                    seen[clips] = launches(twin, optimizer, gradients(twin, step))
    extra = seen[True].total() - seen[False].total()
    assert 0 < extra <= 10, seen
    kernel = {'NormClip': 'norm_clip', 'ZClip': 'zclip', 'AutoClip': 'autoclip'}[name.split()[0]]
    assert seen[True][kernel] == seen[True]['_measure'] == 1
