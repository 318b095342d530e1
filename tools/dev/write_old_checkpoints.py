"""Write the files of tests/data/checkpoints_55e41c2 with the package as it was at that commit.

    git worktree add /tmp/old 55e41c2
    PYTHONPATH=/tmp/old GCLIP_NUMBA=0 python tools/dev/write_old_checkpoints.py

tests/clipping/step/test_old_checkpoints.py reads the files with the current package and uses the
functions below, so that both sides train the same way. The folder holds

- ``gradients.pt.gz``: the gradients of all steps, (STEPS, weights) float32;
- ``probe.pt.gz``: results of plain torch operations, which tell whether a platform can be expected
  to compute the same bits;
- ``<case>.pt.gz``: a rule's config and a run for each optimizer: the checkpoint after SAVED steps,
  and the parameters and the rule's state after STEPS steps.
"""

from __future__ import annotations

import gzip
import io
import os
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import gclip_mm

COMMIT = '55e41c2'
FOLDER = Path(__file__).resolve().parents[2] / 'tests' / 'data' / f'checkpoints_{COMMIT}'

#: Steps before the checkpoint, and in all.
SAVED, STEPS = 7, 13
#: Scales of steps that stand out, steps with a NaN, and steps in which a parameter has no gradient.
SPIKES = {4: 20.0, 9: 30.0}
NONFINITE = (2, SAVED - 1, 10)
MISSING = {3: 'deconv.bias', 8: 'conv.weight'}

OPTIMIZERS: dict[str, tuple[type[Optimizer], dict[str, Any]]] = {
    'SGD': (torch.optim.SGD, dict(lr=0.05, momentum=0.9)),
    'SGD fused': (torch.optim.SGD, dict(lr=0.05, momentum=0.9, fused=True)),
    'AdamW': (torch.optim.AdamW, dict(lr=0.02, weight_decay=0.01)),
    'AdamW fused': (torch.optim.AdamW, dict(lr=0.02, weight_decay=0.01, fused=True)),
}

_ROUTES = dict(
    type='AutoClip',
    percentile=40,
    window=4,
    exclude=['linear.bias'],
    rules=[
        dict(match='^conv', type='AdaGC', warmup_steps=3, rel=1.01, beta=0.9),
        dict(module='ConvTranspose2d', type='AGC', clip_factor=0.01),
    ],
)
#: The ``clip_grad`` of each case. Warm-ups end before the checkpoint or soon after it.
CASES: dict[str, dict[str, Any]] = {
    'AutoClip': dict(type='AutoClip', percentile=40, window=4),
    'ZClip': dict(type='ZClip', warmup_steps=4, z_threshold=0.5, max_norm=None),
    'ZClip_warming_up': dict(
        type='ZClip', warmup_steps=6, z_threshold=0.5, mode='mean', max_norm=None
    ),
    'AdaGC': dict(type='AdaGC', warmup_steps=3, rel=1.01, beta=0.9),
    'AdaGC_unnamed': dict(type='AdaGC', warmup_steps=6, rel=1.01, beta=0.9),
    'SpikeClip': dict(type='SpikeClip', theta=1.5, beta=0.9, grace_steps=2),
    'AdaClip': dict(type='AdaClip', beta=0.9),
    'GradientStabilizer': dict(type='GradientStabilizer'),
    'ChainClip': dict(
        type='ChainClip',
        clips=[
            dict(type='AdaClip', beta=0.9),
            dict(type='AutoClip', percentile=40, window=4),
            dict(type='NormClip', max_norm=5.0),
        ],
    ),
    'NormClip_carry': dict(
        type='NormClip',
        max_norm=0.5,
        carry=True,
        schedule=dict(type='linear', start_factor=0.5, end=12),
    ),
    'ParamNormClip_carry': dict(type='ParamNormClip', max_norm=0.3, carry=True),
    'ValueClip_carry': dict(type='ValueClip', clip_value=0.3, carry=True),
    'routes': _ROUTES,
    'routes_carry': dict(
        type='norm',
        max_norm=0.5,
        carry=True,
        exclude=['linear.bias'],
        rules=[dict(match='^conv', type='SpikeClip', theta=1.5, beta=0.9, grace_steps=2)],
    ),
}
#: Cases that are written through MMEngine's ``GClipOptimWrapper``.
WRAPPER_CASES: dict[str, dict[str, Any]] = {'mmengine_wrapper': _ROUTES}


class Net(nn.Module):
    """A convolution, a transposed convolution and a linear layer, all with a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 2)
        self.deconv = nn.ConvTranspose2d(3, 2, 2)
        self.linear = nn.Linear(5, 3)


def make_net() -> Net:
    """The model before the first step, the same on every platform."""
    generator = torch.Generator().manual_seed(0)
    net = Net()
    with torch.no_grad():
        for param in net.parameters():
            param.copy_(torch.randn(param.shape, generator=generator) * 0.5)
    return net


def make_optimizer(name: str, net: Net) -> Optimizer:
    """An optimizer of :data:`OPTIMIZERS`."""
    cls, kwargs = OPTIMIZERS[name]
    return cls(net.parameters(), **kwargs)


def make_gradients() -> Tensor:
    """The gradients of all steps, (STEPS, weights) float32."""
    generator = torch.Generator().manual_seed(1)
    gradients = torch.randn(STEPS, sum(p.numel() for p in Net().parameters()), generator=generator)
    for step, scale in SPIKES.items():
        gradients[step] *= scale
    for step in NONFINITE:
        gradients[step, 7 * step] = float('nan')
    return gradients


def gradients_of(net: Net, gradients: Tensor, step: int) -> Iterable[tuple[Tensor, Tensor | None]]:
    """Each parameter with its gradient in a step, or None."""
    sizes = [param.numel() for param in net.parameters()]
    parts = gradients[step].split(sizes)
    for (name, param), part in zip(net.named_parameters(), parts, strict=True):
        yield param, None if MISSING.get(step) == name else part.view_as(param).clone()


def train(net: Net, optimizer: Optimizer, gradients: Tensor, begin: int, end: int) -> None:
    """Step with the gradients of steps ``begin`` to ``end - 1``."""
    for step in range(begin, end):
        for param, grad in gradients_of(net, gradients, step):
            param.grad = grad
        optimizer.step()


def train_wrapper(net: Net, wrapper: Any, gradients: Tensor, begin: int, end: int) -> None:
    """:func:`train` through an MMEngine wrapper, by a loss that has the same gradients."""
    wrapper.initialize_count_status(net, begin, STEPS)
    for step in range(begin, end):
        terms = [
            (param * grad).sum()
            for param, grad in gradients_of(net, gradients, step)
            if grad is not None
        ]
        with wrapper.optim_context(net):
            wrapper.update_params(sum(terms))


def probe(gradients: Tensor) -> dict[str, Tensor]:
    """Results of plain torch operations on the gradients, by the operation's name."""
    finite = gradients.nan_to_num(nan=0.5)
    results = {}
    for name in OPTIMIZERS:
        net = make_net()
        train(net, make_optimizer(name, net), finite, 0, STEPS)
        results[name] = torch.cat([p.detach().reshape(-1) for p in net.parameters()])
    net = make_net()
    grads = [grad for step in range(STEPS) for _, grad in gradients_of(net, finite, step)]
    grads = [grad for grad in grads if grad is not None]
    results['foreach_norm'] = torch.stack(torch._foreach_norm(grads))
    results['foreach_norm float64'] = torch.stack(torch._foreach_norm(grads, dtype=torch.float64))
    results['vector_norm'] = torch.linalg.vector_norm(finite, dim=1)
    results['vector_norm float64'] = torch.linalg.vector_norm(finite, dim=1, dtype=torch.float64)
    units = [torch.linalg.vector_norm(g.flatten(1), dim=1) for g in grads if g.ndim > 1]
    results['unit norms'] = torch.cat(units)
    results['sum of squares'] = torch.stack([grad.square().sum() for grad in grads])
    results['lerp'] = finite.lerp(finite.square(), 0.1)
    results['addcmul'] = finite.addcmul(finite, finite, value=0.1)
    norms = results['vector_norm float64']
    results['quantile'] = torch.quantile(norms, 0.4)
    results['sqrt'] = torch.cat([finite.abs().sqrt().double().reshape(-1), norms.sqrt()])
    results['pow'] = torch.cat([norms.pow(-0.3), 0.9 ** torch.arange(20, dtype=torch.float64)])
    results['exp and log'] = torch.cat([(-norms).exp(), norms.log()])
    return results


def save(path: Path, content: Any) -> None:
    """``torch.save``, compressed where the name ends in ``.gz``."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    data = buffer.getvalue()
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == '.gz' else data)


def load(path: Path) -> Any:
    """Read what :func:`save` wrote."""
    data = path.read_bytes()
    if path.suffix == '.gz':
        data = gzip.decompress(data)
    return torch.load(io.BytesIO(data), weights_only=True)


def _copy(value: Any) -> Any:
    """A deep copy of a nested state, so that later steps do not change it."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def run_attached(case: str, optimizer_name: str, gradients: Tensor) -> dict[str, Any]:
    """A run through ``gclip_mm.attach``."""
    net = make_net()
    optimizer = make_optimizer(optimizer_name, net)
    handle = gclip_mm.attach(optimizer, CASES[case], model=model_of(case, net))
    train(net, optimizer, gradients, 0, SAVED)
    saved = dict(model=net.state_dict(), optimizer=optimizer.state_dict(), clip=handle.state_dict())
    saved = _copy(saved)
    train(net, optimizer, gradients, SAVED, STEPS)
    return saved | _copy(dict(model_after=net.state_dict(), clip_after=handle.state_dict()))


def run_wrapper(case: str, optimizer_name: str, gradients: Tensor) -> dict[str, Any]:
    """A run through MMEngine's wrapper; ``optimizer`` is the wrapper's state."""
    from gclip_mm.engine import GClipOptimWrapper

    net = make_net()
    optimizer = make_optimizer(optimizer_name, net)
    wrapper = GClipOptimWrapper(optimizer, clip_grad=WRAPPER_CASES[case])
    train_wrapper(net, wrapper, gradients, 0, SAVED)
    saved = _copy(dict(model=net.state_dict(), optimizer=wrapper.state_dict()))
    train_wrapper(net, wrapper, gradients, SAVED, STEPS)
    clip_after = wrapper.state_dict()['gclip']
    return saved | _copy(dict(model_after=net.state_dict(), clip_after=clip_after))


def model_of(case: str, net: Net) -> Net | None:
    """The model that a case gives to ``attach``; an unnamed case gives none."""
    return None if case.endswith('unnamed') else net


def takes(case: str, optimizer_name: str) -> bool:
    """Whether the case's rule accepts the optimizer: GradientStabilizer takes Adam-like ones."""
    return case != 'GradientStabilizer' or optimizer_name.startswith('Adam')


def main() -> None:
    if find_spec('gclip_mm.clipping.routing') is None:
        sys.exit(f'{gclip_mm.__file__} is not the package of commit {COMMIT}.\n\n{__doc__}')
    if os.environ.get('GCLIP_NUMBA') != '0':
        sys.exit('Set GCLIP_NUMBA=0: the files hold the results of the torch path.')
    torch.set_num_threads(1)
    FOLDER.mkdir(parents=True, exist_ok=True)
    gradients = make_gradients()
    save(FOLDER / 'gradients.pt.gz', gradients)
    save(FOLDER / 'probe.pt.gz', dict(torch=str(torch.__version__), results=probe(gradients)))
    for cases, run in ((CASES, run_attached), (WRAPPER_CASES, run_wrapper)):
        for case, clip_grad in cases.items():
            runs = {name: run(case, name, gradients) for name in OPTIMIZERS if takes(case, name)}
            path = FOLDER / f'{case}.pt.gz'
            save(path, dict(commit=COMMIT, clip_grad=clip_grad, runs=runs))
            print(f'{path.name}: {len(runs)} runs, {path.stat().st_size} bytes')


if __name__ == '__main__':
    main()
