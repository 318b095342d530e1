"""The parameters of an optimizer: their names in the model and the modules that own them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from .units import UnitLayout, unit_layout

#: Name parts that wrappers (DDP, FSDP, torch.compile, activation checkpointing) add.
_WRAPPER_PARTS = {'_fsdp_wrapped_module', '_orig_mod', '_checkpoint_wrapped_module'}


class ParamInfo(NamedTuple):
    """A parameter of the optimizer and its place in the model.

    Attributes:
        param: the parameter.
        name: dotted name in the model, without the parts that wrappers add; without a model
            ``param_{i}``, counted over the optimizer's groups.
        module: the module that owns it, or None.
        attribute: its name within that module.
    """

    param: Tensor
    name: str
    module: nn.Module | None
    attribute: str

    @property
    def layout(self) -> UnitLayout:
        """Which elements of the parameter share a unit."""
        return unit_layout(self.param, self.module, self.attribute)


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside DataParallel and DistributedDataParallel wrappers."""
    parallel = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while isinstance(model, parallel):
        model = model.module
    return model


def describe_params(params: Iterable[Tensor], model: nn.Module | None) -> list[ParamInfo]:
    """Names and owners of the optimizer's parameters, in the optimizer's order."""
    owners: dict[int, tuple[str, nn.Module, str]] = {}
    if model is not None:
        modules = dict(unwrap(model).named_modules())
        for path, module in modules.items():
            parts = [part for part in path.split('.') if part and part not in _WRAPPER_PARTS]
            owner, weight = module, None
            if isinstance(module, ParametrizationList):
                # Its tensors replace a parameter of the outer module and have its layout.
                outer, _, weight = path.rpartition('.')
                owner = modules[outer.rpartition('parametrizations')[0].rstrip('.')]
            for attribute, param in module.named_parameters(recurse=False):
                name = '.'.join([*parts, attribute])
                owners.setdefault(id(param), (name, owner, weight or attribute))
    return [
        ParamInfo(p, *owners.get(id(p), (f'param_{i}', None, ''))) for i, p in enumerate(params)
    ]
