"""``CfgNode`` (yacs) and LazyConfig (OmegaConf), as far as tests need them."""

from __future__ import annotations

import ast
import contextlib
import copy
import importlib
import runpy
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any

import yaml

__all__ = ['CfgNode', 'LazyCall', 'LazyConfig', 'get_cfg', 'instantiate']


class CfgNode(dict):
    """A dict with attributes, whose keys are fixed once it is made."""

    def __init__(self, content: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.__dict__['_frozen'] = False
        for key, value in (content or {}).items():
            self[key] = CfgNode(value) if isinstance(value, dict) else value

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def __setattr__(self, name: str, value: Any) -> None:
        if self.is_frozen():
            raise AttributeError(f'Attempted to set {name} to {value}, but CfgNode is immutable')
        self[name] = value

    def is_frozen(self) -> bool:
        return self.__dict__['_frozen']

    def freeze(self, frozen: bool = True) -> None:
        self.__dict__['_frozen'] = frozen
        for value in self.values():
            if isinstance(value, CfgNode):
                value.freeze(frozen)

    def defrost(self) -> None:
        self.freeze(False)

    def clone(self) -> CfgNode:
        return copy.deepcopy(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> CfgNode:
        new = CfgNode({key: copy.deepcopy(value, memo) for key, value in self.items()})
        new.__dict__['_frozen'] = self.is_frozen()
        return new

    def merge_from_list(self, items: list[Any]) -> None:
        for name, value in zip(items[::2], items[1::2], strict=True):
            node, *rest = self, *name.split('.')
            for key in rest[:-1]:
                node = node[key]
            if rest[-1] not in node:
                raise KeyError(f'Non-existent key: {name}')
            if isinstance(value, str):
                with contextlib.suppress(ValueError, SyntaxError):
                    value = ast.literal_eval(value)
            node[rest[-1]] = value

    def merge_from_file(self, name: str) -> None:
        def flat(node: dict[str, Any], prefix: str) -> Iterator[Any]:
            for key, value in node.items():
                if isinstance(value, dict):
                    yield from flat(value, f'{prefix}{key}.')
                else:
                    yield from (prefix + key, value)

        self.merge_from_list(list(flat(yaml.safe_load(Path(name).read_text()) or {}, '')))

    def dump(self) -> str:
        def plain(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: plain(item) for key, item in value.items()}
            return list(value) if isinstance(value, tuple) else value

        return yaml.safe_dump(plain(self))


def get_cfg() -> CfgNode:
    from .defaults import _C

    return _C.clone()


class DictConfig(MutableMapping):
    """OmegaConf's: a mapping with attributes that is no dict, and holds objects."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        self.__dict__['_content'] = {
            key: DictConfig(value) if type(value) is dict else value
            for key, value in content.items()
        }

    def __getitem__(self, key: str) -> Any:
        return self._content[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self._content[key] = DictConfig(value) if type(value) is dict else value

    def __delitem__(self, key: str) -> None:
        del self._content[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._content)

    def __len__(self) -> int:
        return len(self._content)

    def __getattr__(self, name: str) -> Any:
        if name.startswith('__') or name not in self._content:
            raise AttributeError(name)
        return self._content[name]

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value


class LazyCall:
    def __init__(self, target: Any) -> None:
        self._target = target

    def __call__(self, **kwargs: Any) -> DictConfig:
        return DictConfig({**kwargs, '_target_': self._target})


def _locate(name: str) -> Any:
    module, _, attribute = name.rpartition('.')
    return getattr(importlib.import_module(module), attribute)


def instantiate(cfg: Any) -> Any:
    if isinstance(cfg, list):
        return [instantiate(item) for item in cfg]
    if isinstance(cfg, Mapping) and '_target_' in cfg:
        values = {key: instantiate(value) for key, value in cfg.items()}
        target = values.pop('_target_')
        return (_locate(target) if isinstance(target, str) else target)(**values)
    return cfg


class LazyConfig:
    @staticmethod
    def load(name: str) -> DictConfig:
        content = runpy.run_path(name)
        nodes = {k: v for k, v in content.items() if isinstance(v, dict | DictConfig)}
        return DictConfig({k: v for k, v in nodes.items() if not k.startswith('_')})

    @staticmethod
    def apply_overrides(cfg: DictConfig, overrides: list[str]) -> DictConfig:
        for item in overrides:
            name, _, value = item.partition('=')
            node, *keys = cfg, *name.split('.')
            for key in keys[:-1]:
                node = node[key]
            node[keys[-1]] = yaml.safe_load(value)
        return cfg

    @staticmethod
    def save(cfg: DictConfig, filename: str) -> None:
        def plain(value: Any) -> Any:
            if isinstance(value, Mapping):
                return {key: plain(item) for key, item in value.items()}
            return f'{value.__module__}.{value.__qualname__}' if callable(value) else value

        Path(filename).write_text(yaml.safe_dump(plain(cfg)))
