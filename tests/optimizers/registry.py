"""Every optimizer that can be constructed here, enumerated from the packages' own registries."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

Build = Callable[[nn.Module], Optimizer]

PACKAGES = (
    'torch',
    'timm',
    'schedulefree',
    'pytorch_optimizer',
    'dadaptation',
    'bitsandbytes',
    'prodigyopt',
)


@dataclass(frozen=True)
class Entry:
    """One optimizer and what a training loop has to know to drive it.

    Args:
        package: the package that it comes from.
        name: its name there, or a variant's (``Adam-fused``).
        build: constructs it for a model.
        closure: ``step`` is called with a closure.
        before: the closure is also called once ahead of ``step``, as SAM's loop does.
        create_graph: backward keeps its graph, for optimizers that take Hessians.
        tolerance: relative tolerance against gradients clipped by torch; 0: bit-identical.
        own_gradients: updates the parameters outside ``step`` or keeps gradients outside ``.grad``.
    """

    package: str
    name: str
    build: Build = field(repr=False)
    closure: bool = False
    before: bool = False
    create_graph: bool = False
    tolerance: float = 0.0
    own_gradients: bool = False

    @property
    def id(self) -> str:
        return f'{self.package}.{self.name}'


class TinyModel(nn.Module):
    """Two parameters, a square matrix (4, 4) and a vector (4,), whose gradient the loss sets."""

    def __init__(self, with_bias: bool = True) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(4, 4, generator=generator))
        if with_bias:
            self.bias = nn.Parameter(torch.randn(4, generator=generator))

    def forward(self, slopes: list[torch.Tensor]) -> torch.Tensor:
        """The loss whose gradient is ``slopes`` and a little of the parameters themselves."""
        parts = [
            (p * slope).sum() + 0.05 * (p * p).sum()
            for p, slope in zip(self.parameters(), slopes, strict=True)
        ]
        return torch.stack(parts).sum()


#: Optimizers that take matrices only.
MATRICES_ONLY = {'torch.Muon', 'pytorch_optimizer.spectralsphere'}

#: The loop that an optimizer asks for, where it is not zero_grad, backward, step.
LOOPS: dict[str, dict[str, Any]] = {
    'torch.LBFGS': dict(closure=True),
    'torch.LBFGS-strong_wolfe': dict(closure=True),
    'torch.Adam-fused': dict(tolerance=1e-5),
    'torch.AdamW-fused': dict(tolerance=1e-5),
    'torch.SGD-fused': dict(tolerance=1e-5),
    'torch.Adagrad-fused': dict(tolerance=1e-5),
    'timm.adahessian': dict(create_graph=True),
    'schedulefree.RAdamScheduleFreeClosure': dict(closure=True),
    'schedulefree.AdamWScheduleFreeClosure': dict(closure=True),
    'schedulefree.SGDScheduleFreeClosure': dict(closure=True),
    'pytorch_optimizer.lbfgs': dict(closure=True),
    'pytorch_optimizer.alig': dict(closure=True),
    'pytorch_optimizer.bsam': dict(closure=True, before=True),
    'pytorch_optimizer.sam': dict(closure=True, before=True),
    'pytorch_optimizer.wsam': dict(closure=True),
    'pytorch_optimizer.looksam': dict(closure=True, before=True),
    'pytorch_optimizer.friendlysam': dict(closure=True, before=True),
    'pytorch_optimizer.adahessian': dict(create_graph=True),
    'pytorch_optimizer.sophiah': dict(create_graph=True),
    'pytorch_optimizer.lomo': dict(own_gradients=True),
    'pytorch_optimizer.adalomo': dict(own_gradients=True),
}


def _sgd(params: Any) -> Optimizer:
    return torch.optim.SGD(params, lr=0.01, momentum=0.9)


# -- the packages ---------------------------------------------------------------------------------
def _classes(module: Any, base: type = object) -> dict[str, type]:
    return {
        name: value
        for name, value in vars(module).items()
        if inspect.isclass(value) and issubclass(value, base) and value is not Optimizer
    }


def _constructor(cls: type, **options: Any) -> Build:
    return lambda model: cls(model.parameters(), **options)


def _torch() -> dict[str, Build]:
    found: dict[str, Build] = {}
    for name, cls in _classes(torch.optim, Optimizer).items():
        found[name] = _constructor(cls, lr=0.01)
        switches = inspect.signature(cls).parameters
        for switch in ('foreach', 'fused'):
            if switch in switches:
                found[f'{name}-{switch}'] = _constructor(cls, lr=0.01, **{switch: True})
    found['SGD-momentum'] = _sgd_of_model
    found['LBFGS-strong_wolfe'] = _constructor(
        torch.optim.LBFGS, lr=0.5, line_search_fn='strong_wolfe'
    )
    return found


def _sgd_of_model(model: nn.Module) -> Optimizer:
    return _sgd(model.parameters())


def _timm_optim() -> Any:
    """``timm.optim``, also where torchvision, which the rest of timm needs, does not import."""
    try:
        return importlib.import_module('timm.optim')
    except (ImportError, RuntimeError):
        # A binary torchvision that does not fit torch raises RuntimeError.
        spec = importlib.util.find_spec('timm')
        if spec is None:
            raise
        for name in [n for n in sys.modules if n == 'timm' or n.startswith('timm.')]:
            del sys.modules[name]
        package = types.ModuleType('timm')
        package.__path__ = list(spec.submodule_search_locations or [])
        models = types.ModuleType('timm.models')
        models.group_parameters = None  # type: ignore[attr-defined]
        sys.modules.update({'timm': package, 'timm.models': models})
        return importlib.import_module('timm.optim')


def _timm() -> dict[str, Build]:
    optim = _timm_optim()

    def build(name: str) -> Build:
        return lambda model: optim.create_optimizer_v2(model, opt=name, lr=0.01)

    names = [*optim.list_optimizers(), 'lookahead_sgd', 'lookahead_adam']
    return {name: build(name) for name in names}


def _schedulefree() -> dict[str, Build]:
    module = importlib.import_module('schedulefree')
    found: dict[str, Build] = {}
    for name, cls in _classes(module).items():
        if issubclass(cls, Optimizer):
            found[name] = _constructor(cls, lr=0.01)
        else:

            def wrap(model: nn.Module, cls: type = cls) -> Optimizer:
                return cls(_sgd(model.parameters()))

            found[name] = wrap
    return found


def _pytorch_optimizer() -> dict[str, Build]:
    module = importlib.import_module('pytorch_optimizer')

    def plain(name: str) -> Build:
        return lambda model: module.load_optimizer(name)(model.parameters())

    def muon(name: str) -> Build:
        def build(model: nn.Module) -> Optimizer:
            matrices = [p for p in model.parameters() if p.ndim >= 2]
            rest = [p for p in model.parameters() if p.ndim < 2]
            groups = [dict(params=matrices, use_muon=True), dict(params=rest, use_muon=False)]
            return module.load_optimizer(name)(groups)

        return build

    found = {name: plain(name) for name in module.get_supported_optimizers()}
    for name in ('muon', 'adamuon', 'adago', 'normuon', 'distributedmuon', 'muonclip'):
        found[name] = muon(name)
    found['bsam'] = lambda m: module.BSAM(m.parameters(), num_data=8)
    found['ranger21'] = lambda m: module.load_optimizer('ranger21')(
        m.parameters(), num_iterations=100
    )
    for name in ('lomo', 'adalomo', 'adammini'):
        found[name] = lambda m, name=name: module.load_optimizer(name)(m)
    # At its default rate of 1 the quadratic loss diverges.
    found['lbfgs'] = lambda m: module.LBFGS(m.parameters(), lr=0.01)
    found['sam'] = lambda m: module.SAM(m.parameters(), base_optimizer=torch.optim.SGD, lr=0.01)
    found['looksam'] = lambda m: module.LookSAM(
        m.parameters(), base_optimizer=torch.optim.SGD, lr=0.01
    )
    found['friendlysam'] = lambda m: module.FriendlySAM(
        m.parameters(), base_optimizer=torch.optim.SGD, lr=0.01
    )
    found['wsam'] = lambda m: module.WSAM(m, m.parameters(), torch.optim.SGD, lr=0.01)
    found['lookahead'] = lambda m: module.Lookahead(_sgd(m.parameters()), k=2)
    found['trac'] = lambda m: module.TRAC(_sgd(m.parameters()))
    found['orthograd'] = lambda m: module.OrthoGrad(_sgd(m.parameters()))
    found['pcgrad'] = lambda m: module.PCGrad(_sgd(m.parameters()))
    found['schedulefreewrapper'] = lambda m: module.ScheduleFreeWrapper(_sgd(m.parameters()))
    return found


def _dadaptation() -> dict[str, Build]:
    module = importlib.import_module('dadaptation')
    return {name: _constructor(cls) for name, cls in _classes(module, Optimizer).items()}


def _bitsandbytes() -> dict[str, Build]:
    module = importlib.import_module('bitsandbytes.optim')
    found: dict[str, Build] = {}
    for name, cls in _classes(module, Optimizer).items():
        options = dict(lr=0.01)
        if 'momentum' in inspect.signature(cls).parameters:
            options['momentum'] = 0.9
        found[name] = _constructor(cls, **options)
    return found


def _prodigyopt() -> dict[str, Build]:
    module = importlib.import_module('prodigyopt')
    return {name: _constructor(cls) for name, cls in _classes(module, Optimizer).items()}


_BUILDERS: dict[str, Callable[[], dict[str, Build]]] = {
    'torch': _torch,
    'timm': _timm,
    'schedulefree': _schedulefree,
    'pytorch_optimizer': _pytorch_optimizer,
    'dadaptation': _dadaptation,
    'bitsandbytes': _bitsandbytes,
    'prodigyopt': _prodigyopt,
}


def entries(package: str) -> Iterator[Entry]:
    """The optimizers of a package, by name.

    Raises:
        ImportError: the package, or something that it needs, is not installed.
    """
    for name, build in _BUILDERS[package]().items():
        yield Entry(package, name, build, **LOOPS.get(f'{package}.{name}', {}))


def make(entry: Entry) -> tuple[TinyModel, Optimizer]:
    """A model and its optimizer, in training mode where it has modes."""
    torch.manual_seed(0)
    model = TinyModel(with_bias=entry.id not in MATRICES_ONLY)
    optimizer = entry.build(model)
    if callable(getattr(optimizer, 'train', None)):
        optimizer.train()
    return model, optimizer
