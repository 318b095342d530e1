"""Finds, loads and edits configs: helpers that start no run."""

from __future__ import annotations

import difflib
import importlib.util
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import print_log
from mmengine.registry import OPTIM_WRAPPERS

from ..compat import lacks_fused
from .scopes import register_scope


class LaunchError(Exception):
    """A mistake in the command or the config that one line can explain."""


# -- finding and loading -------------------------------------------------------------------------
def find_config(name: str) -> str:
    """The path of a config given as a path or, as in ``_base_``, as ``package::path``.

    Args:
        name: ``configs/quickstart/x.py``, or ``mmdet::faster_rcnn/x.py`` for one of the stock
            configs that the package ships.

    Raises:
        LaunchError: the file does not exist; the message names the nearest ones.
    """
    if '::' in name:
        package, _, relative = name.partition('::')
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
        if spec is None or spec.origin is None:
            raise LaunchError(f'config {name!r}: no package {package!r} is installed')
        root = Path(spec.origin).parent / '.mim' / 'configs'
        if not root.is_dir():
            raise LaunchError(f'config {name!r}: package {package!r} ships no configs')
        path, where = root / relative.removeprefix('configs/'), root
    else:
        path, where = Path(name), Path('configs')
    if path.is_file():
        return str(path)
    near = _near_names(path, where)
    if '::' in name:
        near = [f'{package}::{Path(n).relative_to(root).as_posix()}' for n in near]
    hint = f'; did you mean {" or ".join(near)}?' if near else ''
    raise LaunchError(f'config {name!r} is not there{hint}')


def _near_names(path: Path, root: Path) -> list[str]:
    """Up to three configs whose file names resemble that of ``path``, its own folder first."""
    found: dict[str, str] = {}
    for folder, pattern in ((path.parent, '*.py'), (root, '**/*.py')):
        if folder.is_dir():
            for file in sorted(folder.glob(pattern)):
                found.setdefault(file.name, str(file))
    return [found[name] for name in difflib.get_close_matches(path.name, found, n=3, cutoff=0.6)]


def load_config(
    name: str, options: dict[str, Any] | None, work_dir: str | None, launcher: str
) -> Config:
    """Load a config and apply the flags that every tool has.

    Args:
        name: see :func:`find_config`.
        options: the value of ``--cfg-options``.
        work_dir: the value of ``--work-dir``. None: the config's own ``work_dir``, or
            ``work_dirs/<config name>`` where the config has none.
        launcher: the value of ``--launcher``.

    Raises:
        LaunchError: the config does not exist.
    """
    path = find_config(name)
    cfg = Config.fromfile(path)
    cfg.launcher = launcher
    if options is not None:
        cfg.merge_from_dict(options)
    if work_dir is not None:
        cfg.work_dir = work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = os.path.join('work_dirs', Path(path).stem)
    register_scope(cfg)
    drop_missing_kernels(cfg)
    return cfg


def drop_missing_kernels(cfg: Config) -> None:
    """Remove ``fused=True`` from optimizers for which this PyTorch has no fused kernel.

    PyTorch would refuse to build them. The run is the same but for rounding and speed.

    Args:
        cfg: the config; it is changed in place.
    """
    device = get_device()
    for _, wrapper in optim_wrappers(cfg):
        optimizer = wrapper['optimizer']
        if not isinstance(optimizer, dict) or not optimizer.get('fused'):
            continue
        name = _type_name(optimizer)
        if lacks_fused(name, device):
            del optimizer['fused']
            print_log(
                f'PyTorch {torch.__version__} has no fused {name} for the device {device!r}: '
                'fused=True is left out',
                logger='current',
                level=logging.WARNING,
            )


# -- optimizer wrappers --------------------------------------------------------------------------
def optim_wrappers(cfg: Config) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each optimizer wrapper's key and dict; several for an ``OptimWrapperDict``.

    A wrapper without ``type`` gets MMEngine's default, ``OptimWrapper``.
    """
    top = cfg.get('optim_wrapper')
    if not isinstance(top, dict):
        return
    if 'optimizer' in top:
        top.setdefault('type', 'OptimWrapper')
        yield 'optim_wrapper', top
        return
    for name, member in top.items():
        if isinstance(member, dict) and 'optimizer' in member:
            member.setdefault('type', 'OptimWrapper')
            yield f'optim_wrapper.{name}', member


def wrapper_class(wrapper: dict[str, Any]) -> Any:
    """The class that an optimizer wrapper's ``type`` names; None for an unregistered name."""
    kind = wrapper['type']
    return OPTIM_WRAPPERS.get(kind) if isinstance(kind, str) else kind


# -- hooks and imports ---------------------------------------------------------------------------
def import_us(cfg: Config) -> None:
    """Add this package to ``custom_imports``, so that the config also trains elsewhere."""
    imports = dict(cfg.get('custom_imports') or {})
    modules = imports.get('imports') or []
    modules = [modules] if isinstance(modules, str) else list(modules)
    if 'gclip_mm' not in modules:
        imports['imports'] = [*modules, 'gclip_mm']
        imports.setdefault('allow_failed_imports', False)
        cfg.custom_imports = imports


def clip_hooks(cfg: Config) -> list[dict[str, Any]]:
    """The ``GClipHook`` entries of ``custom_hooks``."""
    return [hook for hook in cfg.get('custom_hooks') or () if _is_clip_hook(hook)]


def drop_clip_hooks(cfg: Config) -> None:
    """Remove every ``GClipHook`` from ``custom_hooks``."""
    if clip_hooks(cfg):
        cfg.custom_hooks = [hook for hook in cfg.custom_hooks if not _is_clip_hook(hook)]


def _is_clip_hook(hook: dict[str, Any]) -> bool:
    return _type_name(hook) == 'GClipHook'


def _type_name(cfg: dict[str, Any]) -> str:
    """The name of the class that ``type`` gives, without its scope; empty if there is no type."""
    kind = cfg.get('type')
    name: str = kind if isinstance(kind, str) else getattr(kind, '__name__', '')
    return name.split('.')[-1]
