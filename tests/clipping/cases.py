"""What the tests of the rules share: configs, a way to run one, a stand-in for a device."""

from __future__ import annotations

import contextlib
import functools
import sys
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gclip_mm.clipping import CLIPPERS, ClipConfigError, Clipper, attach, parse_clip_grad
from gclip_mm.clipping.base import Finite, Measure, Outcome
from gclip_mm.clipping.gradients.names import describe_params
from gclip_mm.clipping.gradients.view import GradView


def example(name: str) -> dict[str, Any]:
    """The config that a rule gives as its example."""
    return dict(type=name, **CLIPPERS.get(name).example)


#: Every registered rule as its example, and settings whose state leaves its warm-up in a short run.
CASES: dict[str, dict[str, Any]] = {
    **{name: example(name) for name in CLIPPERS},
    'NormClip inf': dict(type='norm', max_norm=0.5, norm_type='inf'),
    'NormClip min': dict(type='norm', max_norm=3.0, min_norm=2.0),
    'NormClip carry': dict(type='norm', max_norm=0.5, carry=True),
    'ParamNormClip carry': dict(type='ParamNormClip', max_norm=0.3, carry=True),
    'ValueClip carry': dict(type='value', clip_value=0.3, carry=True),
    'ValueClip range': dict(type='value', min=-0.1, max=0.3),
    'AutoClip short': dict(type='AutoClip', percentile=40, window=7),
    'ZClip short': dict(type='ZClip', warmup_steps=4, z_threshold=0.5, max_norm=None),
    'ZClip mean': dict(type='ZClip', warmup_steps=4, z_threshold=0.5, mode='mean', max_norm=9.0),
    'ZClip percentile': dict(type='ZClip', warmup_steps=4, z_threshold=0.5, mode='percentile'),
    'AdaGC short': dict(type='AdaGC', warmup_steps=3, rel=1.01, beta=0.9),
    'SpikeClip tight': dict(type='SpikeClip', theta=1.5, beta=0.9, grace_steps=2),
    'AdaClip short': dict(type='AdaClip', beta=0.9),
    'ChainClip states': dict(
        type='ChainClip',
        clips=[
            dict(type='AdaClip', beta=0.9),
            dict(type='AutoClip', percentile=40, window=7),
            dict(type='NormClip', max_norm=5.0),
        ],
    ),
}


class Probe(Optimizer):
    """An optimizer that only remembers the gradients it was handed; any rule accepts it."""

    def __init__(self, params: list[Tensor]) -> None:
        self.seen: list[Tensor | None] | None = None
        super().__init__(params, dict(lr=0.0, betas=(0.9, 0.999)))

    def step(self, closure=None) -> None:
        """Copy the gradients."""
        self.seen = [
            None if p.grad is None else p.grad.detach().clone()
            for group in self.param_groups
            for p in group['params']
        ]


class Runner:
    """Feeds gradients to a rule, through the engine.

    Args:
        config: a ``clip_grad`` config.
        params: the parameters, or their shapes.
    """

    def __init__(self, config: dict[str, Any], params: list[Any], dtype=torch.float32) -> None:
        self.params = [
            p if isinstance(p, Tensor) else nn.Parameter(torch.ones(p, dtype=dtype)) for p in params
        ]
        self.optimizer = Probe(self.params)
        self.handle = attach(self.optimizer, config)

    @property
    def rule(self) -> Clipper:
        """The outer rule."""
        return self.handle.engine.config.outer

    def __call__(self, grads: list[Tensor | None]) -> list[Tensor | None]:
        """What the optimizer gets for these gradients."""
        for param, grad in zip(self.params, grads, strict=True):
            param.grad = None if grad is None else grad.clone()
        self.optimizer.step()
        return self.optimizer.seen


class DeviceRunner:
    """Feeds gradients to a rule as the engine does on a device: ``ok`` is not known to the host."""

    def __init__(self, config: dict[str, Any], shapes: list[tuple[int, ...]]) -> None:
        self.params = [nn.Parameter(torch.ones(shape)) for shape in shapes]
        self.rule = parse_clip_grad(config).outer
        self.outcome: Outcome | None = None
        self.views: dict[tuple[bool, ...], GradView] = {}

    def __call__(self, grads: list[Tensor | None], ok: Tensor | None = None) -> list[Tensor | None]:
        """What the rule makes of these gradients.

        Args:
            grads: the gradients.
            ok: given, it lies in the host's memory, as after ``nonfinite='zero'``; otherwise it is
                what the gradients are, and known to the device alone.
        """
        grads = [None if grad is None else grad.clone() for grad in grads]
        live = [grad for grad in grads if grad is not None]
        present = tuple(grad is not None for grad in grads)
        with torch.no_grad(), on_device(ok):
            if present not in self.views:
                missing = {i for i, there in enumerate(present) if not there}
                infos = describe_params(self.params, None)
                places = [i for i in range(len(grads)) if i not in missing]
                there = [infos[i] for i in places]
                self.views[present] = GradView(there, places, places, len(grads))
            view = self.views[present]
            view.load(live)
            measure: Measure = self.rule.measure(view)
            flag = torch.isfinite(measure.norm)
            finite = Finite(None, flag) if ok is None else Finite(bool(ok))
            self.outcome = self.rule.clip(view, measure, finite)
            if self.outcome.coef is not None:
                view.backend.scale_all(self.outcome.coef)
        return grads


@contextlib.contextmanager
def on_device(but: Tensor | None = None):
    """Have the package take the memory of the CPU for a device's, which the host cannot look at.

    Args:
        but: a tensor that it may look at all the same.
    """

    def host(tensor):
        return tensor.numpy() if tensor is but else None

    with contextlib.ExitStack() as stack:
        for module in _modules_that_look():
            stack.enter_context(mock.patch.object(module, 'host', host))
        yield


@functools.cache
def _modules_that_look() -> list:
    return [
        module
        for name, module in sys.modules.items()
        if name.startswith('gclip_mm.clipping') and hasattr(module, 'host')
    ]


def make_optimizer(config: dict[str, Any], params: Any, sgd: bool = True, **kwargs) -> Optimizer:
    """SGD with momentum where the rule accepts it and it is asked for, else AdamW."""
    if sgd:
        optimizer = torch.optim.SGD(params, lr=0.05, momentum=0.9, **kwargs)
        try:
            parse_clip_grad(config).outer.check_optimizer(optimizer)
        except ClipConfigError:
            params = [p for group in optimizer.param_groups for p in group['params']]
        else:
            return optimizer
    return torch.optim.AdamW(params, lr=0.02, weight_decay=0.01, **kwargs)


def norm(tensors: list[Tensor | None], p: float = 2.0) -> float:
    """The p-norm of all elements together, in float64."""
    parts = [t.detach().double().reshape(-1) for t in tensors if t is not None]
    flat = torch.cat(parts)
    return float(torch.linalg.vector_norm(flat, p)) if flat.numel() else 0.0


def equal(a: Any, b: Any) -> bool:
    """Whether two nested states are the same to the bit."""
    if isinstance(a, Tensor):
        return (
            isinstance(b, Tensor)
            and a.dtype == b.dtype
            and a.shape == b.shape
            and a.detach().numpy().tobytes() == b.detach().numpy().tobytes()
        )
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return a == b
