"""Short versions of optimizers of public packages that clipping handles specially.

Each reproduces how the original is built, what its ``step`` calls, and when its gradients are
complete. All of them step like SGD with a learning rate of 1.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer


def sgd(params: Any) -> Optimizer:
    return torch.optim.SGD(params, lr=1.0)


class Lookahead(Optimizer):
    """timm's Lookahead: has hook tables and ``defaults``, but does not call torch's constructor."""

    def __init__(self, base: Optimizer) -> None:
        self._optimizer_step_pre_hooks: dict[int, Any] = OrderedDict()
        self._optimizer_step_post_hooks: dict[int, Any] = OrderedDict()
        self._base_optimizer = base
        self.defaults = base.defaults
        self.param_groups = base.param_groups
        self.state = defaultdict(dict)

    def step(self, closure=None):
        return self._base_optimizer.step(closure)


class Accelerated(Optimizer):
    """Accelerate's AcceleratedOptimizer: no hooks; all attributes are properties."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer

    state = property(lambda self: self.optimizer.state)
    param_groups = property(lambda self: self.optimizer.param_groups)
    defaults = property(lambda self: self.optimizer.defaults)

    def step(self, closure=None):
        self.optimizer.step(closure)


class PostLocalSGD(Optimizer):
    """torch's PostLocalSGDOptimizer: averages the parameters in every step."""

    def __init__(self, optim: Optimizer) -> None:
        self.optim = optim
        self.param_groups = optim.param_groups
        self.averaged = 0

    state = property(lambda self: self.optim.state)

    def step(self, closure=None):
        self.optim.step()
        self.averaged += 1


class Lightning:
    """LightningOptimizer: a class made at run time, with all attributes of the optimizer."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.__dict__.update({k: v for k, v in vars(optimizer).items() if k != 'step'})
        self.__class__ = type('Lightning', (Lightning, type(optimizer)), {})
        self._optimizer = optimizer

    def step(self, closure=None):
        return self._optimizer.step(closure)


class TwoWithin(Optimizer):
    """An optimizer without hooks that contains two optimizers."""

    def __init__(self, params: list[nn.Parameter]) -> None:
        self.matrices, self.others = sgd(params[:1]), sgd(params[1:])
        self.param_groups = self.matrices.param_groups + self.others.param_groups
        self.state = {}

    def step(self, closure=None):
        self.matrices.step()
        self.others.step()


class PartWithin(Optimizer):
    """An optimizer without hooks that contains an optimizer of some of its parameters."""

    def __init__(self, params: list[nn.Parameter]) -> None:
        self.matrices = sgd(params[:1])
        self.param_groups = [dict(params=params)]
        self.state = {}


class NothingWithin(Optimizer):
    """An optimizer whose constructor does not call torch's."""

    def __init__(self, params: list[nn.Parameter]) -> None:
        self.param_groups = [dict(params=params)]
        self.state = {}

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group['params']:
                p.sub_(p.grad)


class ScheduleFreeWrapper:
    """schedulefree's ScheduleFreeWrapper, which is not an ``Optimizer``."""

    def __init__(self, base: Optimizer) -> None:
        self.base = base


class SAM(Optimizer):
    """The common SAM: loops call ``first_step`` and ``second_step``, or ``step`` with a closure."""

    def __init__(self, params: Any, rho: float = 0.05) -> None:
        super().__init__(params, dict(rho=rho))
        self.base_optimizer = sgd(self.param_groups)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def first_step(self) -> None:
        for group in self.param_groups:
            for p in group['params']:
                self.state[p]['old'] = p.clone()
                p.add_(p.grad, alpha=0.05)

    @torch.no_grad()
    def second_step(self) -> None:
        for group in self.param_groups:
            for p in group['params']:
                p.copy_(self.state[p]['old'])
        self.base_optimizer.step()

    def step(self, closure=None):
        self.first_step()
        torch.enable_grad()(closure)()
        self.second_step()


class Outside(Optimizer):
    """Reads ``main_grad``, as Megatron's optimizers do."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group['params']:
                p.sub_(p.main_grad)


def horovod(optimizer: Optimizer) -> Optimizer:
    """horovod.torch.DistributedOptimizer: a subclass made at run time that reduces in ``step``."""

    class Distributed:
        def synchronize(self) -> None:
            with torch.no_grad():
                for group in self.param_groups:
                    for p in group['params']:
                        p.grad.mul_(4)
            self.is_reduced = True

        @contextlib.contextmanager
        def skip_synchronize(self):
            self.should_synchronize = False
            yield
            self.should_synchronize = True

        should_synchronize = True

        def step(self, closure=None):
            if self.should_synchronize:
                self.synchronize()
            return super(self.__class__, self).step(closure)

    members = {k: v for k, v in vars(Distributed).items() if k not in ('__dict__', '__weakref__')}
    made = type(type(optimizer).__name__, (type(optimizer),), members)
    return made([p for group in optimizer.param_groups for p in group['params']], lr=1.0)


class PlainParent(Optimizer):
    """A class without instances of its own, so torch has not wrapped its step with hooks."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group['params']:
                p.sub_(p.grad)


class Multiplies(PlainParent):
    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group['params']:
                p.grad.mul_(2)
        return super().step(closure)


class Replaces(PlainParent):
    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group['params']:
                p.grad = p.grad * 2
        return super().step(closure)


class OnlyPasses(PlainParent):
    def step(self, closure=None):
        return super().step(closure)


def detectron2(
    cls: type[Optimizer],
    per_param_clipper: Callable[..., Any] | None = None,
    global_clipper: Callable[..., Any] | None = None,
) -> type[Optimizer]:
    """Detectron2's generated class for ``SOLVER.CLIP_GRADIENTS``."""

    def optimizer_wgc_step(self, closure=None):
        if per_param_clipper is not None:
            for group in self.param_groups:
                for p in group['params']:
                    per_param_clipper(p)
        else:
            global_clipper(itertools.chain(*[g['params'] for g in self.param_groups]))
        super(type(self), self).step(closure)

    return type(cls.__name__ + 'WithGradientClip', (cls,), {'step': optimizer_wgc_step})


def mask2former(cls: type[Optimizer], value: float) -> type[Optimizer]:
    """Mask2Former's class for ``CLIP_TYPE = "full_model"``."""

    class FullModelGradientClippingOptimizer(cls):
        def step(self, closure=None):
            params = itertools.chain(*[x['params'] for x in self.param_groups])
            torch.nn.utils.clip_grad_norm_(params, value)
            super().step(closure=closure)

    return FullModelGradientClippingOptimizer


class Cautious(torch.optim.SGD):
    """An unknown class whose step calls torch's clipping."""

    def step(self, closure=None):
        for group in self.param_groups:
            torch.nn.utils.clip_grad_norm_(group['params'], 1.0)
        return super().step(closure)


class Lamb(torch.optim.SGD):
    """timm's Lamb, which clips unless max_grad_norm is None."""

    def __init__(self, params: Any, max_grad_norm: float | None = 1.0) -> None:
        super().__init__(params, lr=1.0)
        for group in self.param_groups:
            group['max_grad_norm'] = max_grad_norm

    def _get_clip_grad_norm(self) -> None: ...

    def step(self, closure=None):
        self._get_clip_grad_norm()
        return super().step(closure)


class AdaMuon(torch.optim.SGD):
    """An optimizer that is recognized as Muon by its name."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, lr=1.0)
