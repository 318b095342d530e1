"""Flags and error messages that the commands share, between the config file and the Runner."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import print_log
from mmengine.optim import AmpOptimWrapper, OptimWrapper

from ..engine import GClipAmpOptimWrapper, GClipOptimWrapper
from ..engine.configs import LaunchError, import_us, optim_wrappers, wrapper_class


def limit_dynamo_cache() -> None:
    """Set TorchDynamo's cache size to ``$DYNAMO_CACHE_SIZE_LIMIT``, if that is set.

    A larger cache avoids recompilation in a config that compiles its model. MMDetection's tools do
    the same.
    """
    limit = os.environ.get('DYNAMO_CACHE_SIZE_LIMIT')
    if limit is not None:
        import torch._dynamo

        torch._dynamo.config.cache_size_limit = int(limit)
        print_log(f'torch._dynamo.config.cache_size_limit is set to {int(limit)}', 'current')


def use_amp(cfg: Config) -> None:
    """Replace every optim wrapper of ``cfg`` by its mixed-precision twin, and keep its clipping.

    ``OptimWrapper`` becomes ``AmpOptimWrapper``, or ``GClipAmpOptimWrapper`` on a CPU, and
    ``GClipOptimWrapper`` becomes ``GClipAmpOptimWrapper``; a mixed-precision wrapper stays. A
    config with several wrappers (``OptimWrapperDict``) is converted member by member.

    Raises:
        LaunchError: the wrapper is of another type; its twin is unknown, and a guess could drop
            its clipping.
    """
    # MMEngine's AmpOptimWrapper refuses a CPU. Ours accepts it, and its results are bit-identical.
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
    """Reject a config that asks for clipping under a key that nothing reads.

    Raises:
        LaunchError: names the key and the right place for the setting.
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
    """Replace a ``FileNotFoundError`` by one line that names the config key of the missing data.

    The check comes after the error, because some data sets create their data on first use.

    Raises:
        LaunchError: a data folder or annotation file of ``cfg`` does not exist.
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
    """Explain why ``--amp`` fails on a CPU for a detector that trains there in float32.

    Raises:
        LaunchError: an operator of mmcv received a 16-bit tensor on a CPU.
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


def _datasets(key: str, config: Any) -> Iterator[tuple[str, dict]]:
    """Every data set of a dataloader's config, those inside wrappers included."""
    if isinstance(config, dict):
        if 'data_root' in config or 'ann_file' in config:
            yield key, config
        for name in ('dataset', 'datasets'):
            yield from _datasets(f'{key}.{name}', config.get(name))
    elif isinstance(config, (list, tuple)):
        for index, item in enumerate(config):
            yield from _datasets(f'{key}[{index}]', item)
