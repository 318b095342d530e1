"""Shared by the tests of the rules: configs, runners for rules, a simulated device."""

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
    """Return the example config of a rule."""
    return dict(type=name, **CLIPPERS.get(name).example)


#: The example of each registered rule, and settings whose warm-up ends within a short run.
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
    """An optimizer that only stores the gradients it receives; any rule accepts it."""

    #: For Auto, which then bounds the gradient.
    is_step_proportional = True

    def __init__(self, params: list[Tensor]) -> None:
        self.seen: list[Tensor | None] | None = None
        super().__init__(params, dict(lr=1.0, betas=(0.9, 0.999)))

    def step(self, closure=None) -> None:
        """Copy the gradients."""
        self.seen = [
            None if p.grad is None else p.grad.detach().clone()
            for group in self.param_groups
            for p in group['params']
        ]


class Runner:
    """Feed gradients to a rule through the engine.

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
        """Take one step with these gradients; return the gradients that the optimizer gets."""
        for param, grad in zip(self.params, grads, strict=True):
            param.grad = None if grad is None else grad.clone()
        self.optimizer.seen = None
        self.optimizer.step()
        return self.optimizer.seen


class DeviceRunner:
    """Feed gradients to a rule as the engine does on a device: the host does not know ``ok``."""

    def __init__(self, config: dict[str, Any], shapes: list[tuple[int, ...]]) -> None:
        self.params = [nn.Parameter(torch.ones(shape)) for shape in shapes]
        self.rule = parse_clip_grad(config).outer
        self.rule.bind(Probe(self.params), None)
        self.outcome: Outcome | None = None
        self.views: dict[tuple[bool, ...], GradView] = {}

    def __call__(self, grads: list[Tensor | None], ok: Tensor | None = None) -> list[Tensor | None]:
        """Return the clipped copies of these gradients.

        Args:
            grads: the gradients.
            ok: a flag in host memory, as after ``nonfinite='zero'``. By default, the flag is
                computed from the gradients and known to the device only.
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
    """Make the package treat CPU memory as device memory, which the host cannot read.

    Args:
        but: a tensor that the host can read nevertheless.
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
    """Return SGD with momentum if ``sgd`` is set and the rule accepts it, else AdamW."""
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
    """Whether two nested states are bit-identical."""
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
