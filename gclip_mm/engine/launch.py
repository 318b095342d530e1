"""What the command-line tools do to a config between the file and the Runner."""

from __future__ import annotations

import difflib
import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS


class LaunchError(Exception):
    """A mistake in the command or the config that one line can explain."""


def find_config(name: str) -> str:
    """The path of a config given as a path or, as in ``_base_``, as ``package::path``.

    Args:
        name: ``configs/quickstart/x.py``, or ``mmdet::faster_rcnn/x.py`` for one of the stock
            configs that the package ships.

    Raises:
        LaunchError: If there is no such file; names the nearest ones.
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
        name: See :func:`find_config`.
        options: What ``--cfg-options`` gave.
        work_dir: What ``--work-dir`` gave; then the config's own, then ``work_dirs/<config name>``.
        launcher: What ``--launcher`` gave.
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
    return cfg


def use_amp(cfg: Config) -> None:
    """Turn every optim wrapper of ``cfg`` into its mixed-precision twin, clipping included.

    ``OptimWrapper`` becomes ``AmpOptimWrapper``, or ``GClipAmpOptimWrapper`` on a CPU, and
    ``GClipOptimWrapper`` becomes ``GClipAmpOptimWrapper``; one that is mixed-precision already
    stays. A config with several wrappers (``OptimWrapperDict``) is converted member by member.

    Raises:
        LaunchError: For any other wrapper, because a twin chosen blindly could drop its clipping.
    """
    from gclip_mm.engine import GClipAmpOptimWrapper, GClipOptimWrapper

    # Stock MMEngine's refuses a CPU; ours clips, if it is told to, to the same bits.
    amp = GClipAmpOptimWrapper if get_device() == 'cpu' else AmpOptimWrapper
    twins = {OptimWrapper: amp, GClipOptimWrapper: GClipAmpOptimWrapper}
    for key, wrapper in optim_wrappers(cfg):
        kind = wrapper_class(wrapper)
        if kind in twins:
            wrapper['type'] = twins[kind].__name__
        elif not (isinstance(kind, type) and issubclass(kind, AmpOptimWrapper)):
            raise LaunchError(
                f'--amp does not know {key}.type {wrapper["type"]!r} and could lose its clipping; '
                f'it knows {" and ".join(known.__name__ for known in twins)}. '
                'Name a mixed-precision wrapper in the config instead'
            )
        wrapper.setdefault('loss_scale', 'dynamic')
        if wrapper_class(wrapper) is GClipAmpOptimWrapper:
            import_us(cfg)


def check_clipping(cfg: Config) -> None:
    """Refuse a config that asks for clipping in a place where nothing reads it.

    Raises:
        LaunchError: Names the key and where the setting belongs.
    """
    for key in ('optimizer_config', 'clip_grad', 'grad_clip'):
        if cfg.get(key):
            raise LaunchError(
                f'nothing reads the top-level key {key!r}, so this run would train without its '
                'clipping; write it as optim_wrapper.clip_grad'
            )
    for key, wrapper in optim_wrappers(cfg):
        clip_grad = wrapper.get('clip_grad')
        rule = clip_grad.get('type', 'norm') if isinstance(clip_grad, dict) else 'norm'
        kind = wrapper_class(wrapper)
        if kind in (OptimWrapper, AmpOptimWrapper) and rule not in ('norm', 'value'):
            raise LaunchError(
                f'{key}.type {kind.__name__} clips by norm or value only, not by {rule!r}; '
                f'use GClip{kind.__name__}'
            )


@contextmanager
def explain_missing_data(cfg: Config) -> Iterator[None]:
    """Turn a ``FileNotFoundError`` into a line that names the config's key, if data is missing.

    Afterwards rather than beforehand, because some data sets create their data on first use.

    Raises:
        LaunchError: A data folder or annotation file of ``cfg`` is not on disk.
    """
    try:
        yield
    except FileNotFoundError as error:
        missing = _missing_data(cfg)
        if missing is None:
            raise
        raise LaunchError(missing) from error


@contextmanager
def explain_amp_on_cpu(amp: bool) -> Iterator[None]:
    """Say in words why a detector that trains in float32 on a CPU does not with ``--amp``.

    Raises:
        LaunchError: One of mmcv's operators was handed a 16-bit tensor on a CPU.
    """
    try:
        yield
    except RuntimeError as error:
        if not (amp and get_device() == 'cpu' and 'expected scalar type' in str(error)):
            raise
        raise LaunchError(
            "--amp on a CPU: mmcv's CPU operators (NMS, RoIAlign) take float32 only, and this "
            'model calls one while it trains; drop --amp, or train on a GPU'
        ) from error


def _missing_data(cfg: Config) -> str | None:
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        for key, dataset in _datasets(loader, cfg.get(loader)):
            root, annotations = dataset.get('data_root') or '', dataset.get('ann_file') or ''
            if '://' in root + annotations or dataset.get('backend_args'):
                continue
            if root and not os.path.isdir(root):
                return _not_there(f'{key}.data_root', root)
            path = os.path.join(root, annotations)
            if annotations and not os.path.exists(path):
                return _not_there(f'{key}.ann_file', path)
    return None


def _not_there(key: str, path: str) -> str:
    return f'{key} {path!r} is not there; put the data there, or pass --cfg-options {key}=PATH'


def optim_wrappers(cfg: Config) -> Iterator[tuple[str, dict]]:
    """Each optim wrapper's own dict: one, or the members of an ``OptimWrapperDict``."""
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


def import_us(cfg: Config) -> None:
    """Add this package to ``custom_imports``, for whoever trains the config elsewhere."""
    imports = dict(cfg.get('custom_imports') or {})
    modules = imports.get('imports') or []
    modules = [modules] if isinstance(modules, str) else list(modules)
    if 'gclip_mm' not in modules:
        imports['imports'] = [*modules, 'gclip_mm']
        imports.setdefault('allow_failed_imports', False)
        cfg.custom_imports = imports


def clip_hooks(cfg: Config) -> list[dict]:
    """The ``GClipHook`` entries of ``custom_hooks``."""
    return [hook for hook in cfg.get('custom_hooks') or () if _is_clip_hook(hook)]


def drop_clip_hooks(cfg: Config) -> None:
    """Take every ``GClipHook`` out of ``custom_hooks``."""
    if clip_hooks(cfg):
        cfg.custom_hooks = [hook for hook in cfg.custom_hooks if not _is_clip_hook(hook)]


def _is_clip_hook(hook: dict) -> bool:
    kind = hook.get('type')
    name = kind if isinstance(kind, str) else getattr(kind, '__name__', '')
    return name.split('.')[-1] == 'GClipHook'


def wrapper_class(wrapper: dict) -> Any:
    """The class that an optim wrapper's ``type`` names; None for a name that nobody registered."""
    kind = wrapper['type']
    return OPTIM_WRAPPERS.get(kind) if isinstance(kind, str) else kind


def _datasets(key: str, config: Any) -> Iterator[tuple[str, dict]]:
    """Every data set below a dataloader's config, inside wrappers and concatenations too."""
    if isinstance(config, dict):
        if 'data_root' in config or 'ann_file' in config:
            yield key, config
        for name in ('dataset', 'datasets'):
            yield from _datasets(f'{key}.{name}', config.get(name))
    elif isinstance(config, (list, tuple)):
        for index, item in enumerate(config):
            yield from _datasets(f'{key}[{index}]', item)
