"""The parameters of an optimizer: their names in the model and the modules that own them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from .units import UnitLayout, unit_layout

#: Name parts that only wrappers (FSDP, torch.compile, activation checkpointing) put into names.
_WRAPPER_PARTS = {'_fsdp_wrapped_module', '_orig_mod', '_checkpoint_wrapped_module'}
#: Package and class of the wrappers that hold their model under a name that a model may use, too,
#: and that name. Subclasses (MMDistributedDataParallel, ExponentialMovingAverage) are covered. By
#: name, because not every package is installed, and classes move between modules.
_WRAPPERS = {
    ('torch', 'DataParallel'): 'module',
    ('torch', 'DistributedDataParallel'): 'module',
    ('torch', 'AveragedModel'): 'module',
    ('mmengine', 'BaseAveragedModel'): 'module',
    ('lightning', '_FabricModule'): '_forward_module',
    ('lightning_fabric', '_FabricModule'): '_forward_module',
}


class ParamInfo(NamedTuple):
    """A parameter of the optimizer and its place in the model.

    Attributes:
        param: the parameter.
        name: dotted name in the model, without the parts that wrappers add; without a model
            ``param_{i}``, counted over the optimizer's groups.
        module: the module that owns it, or None.
        attribute: its name within that module.
        ties: further (name, module) pairs of a parameter that several modules share.
    """

    param: Tensor
    name: str
    module: nn.Module | None
    attribute: str
    ties: tuple[tuple[str, nn.Module], ...] = ()

    @property
    def names(self) -> list[str]:
        """All names of the parameter in the model."""
        return [self.name, *(name for name, _ in self.ties)]

    @property
    def modules(self) -> list[nn.Module | None]:
        """All modules that own the parameter."""
        return [self.module, *(module for _, module in self.ties)]

    @property
    def layout(self) -> UnitLayout:
        """Which elements of the parameter share a unit."""
        return unit_layout(self.param, self.module, self.attribute)


def describe_params(params: Iterable[Tensor], model: nn.Module | None) -> list[ParamInfo]:
    """Names and owners of the optimizer's parameters, in the optimizer's order.

    The names do not depend on wrappers around the model or around parts of it, so that routes match
    and checkpoints load with and without them.
    """
    places: dict[int, dict[str, tuple[nn.Module, str]]] = {}
    if model is not None:
        for parts, lineage in _walk(model):
            module = owner = lineage[-1]
            weight = None
            if isinstance(module, ParametrizationList):
                # Its tensors replace a parameter of the outer module and have its layout:
                # owner.parametrizations.weight.
                owner, weight = lineage[-3:][0], parts[-1]
            for attribute, param in module._parameters.items():
                if param is None:
                    continue
                name = '.'.join([*parts, attribute])
                places.setdefault(id(param), {})[name] = owner, weight or attribute
    return [_info(param, places.get(id(param)), i) for i, param in enumerate(params)]


def _info(param: Tensor, places: dict[str, tuple[nn.Module, str]] | None, i: int) -> ParamInfo:
    if not places:
        return ParamInfo(param, f'param_{i}', None, '')
    (name, (module, attribute)), *others = places.items()
    ties = tuple((other, owner) for other, (owner, _) in others)
    return ParamInfo(param, name, module, attribute, ties)


def _walk(
    module: nn.Module, parts: tuple[str, ...] = (), above: tuple[nn.Module, ...] = ()
) -> Iterator[tuple[tuple[str, ...], tuple[nn.Module, ...]]]:
    """Every module under each of its names, in the order of ``nn.Module.named_modules``.

    Yields:
        The parts of the name, without those that wrappers add; and the modules from the model down
        to this one.
    """
    lineage = (*above, module)
    yield parts, lineage
    wrapped = _wrapped(module)
    for part, child in module._modules.items():
        if child is None or any(child is ancestor for ancestor in lineage):
            continue
        is_added = part in _WRAPPER_PARTS or part == wrapped
        yield from _walk(child, parts if is_added else (*parts, part), lineage)


def _wrapped(module: nn.Module) -> str | None:
    """The name under which a wrapper holds what it wraps; None for other modules."""
    for cls in type(module).__mro__:
        name = _WRAPPERS.get((cls.__module__.partition('.')[0], cls.__name__))
        if name is not None:
            return name
    return None
