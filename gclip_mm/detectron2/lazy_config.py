"""A clipped optimizer in a LazyConfig."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from detectron2.config import instantiate
from torch.optim import Optimizer

from ..clipping.checks import ClipConfigError
from .clip import clip
from .rule import read_rule


def lazy(optimizer: Any, **clip_grad: Any) -> Any:
    """The ``optimizer`` of a LazyConfig, clipped.

    The result has the keys of ``optimizer``, so that the script sets ``optimizer.params.model`` and
    a command line changes ``optimizer.lr`` as before; the rule is ``optimizer.clip_grad``. What is
    added can be written to ``config.yaml``.

    Args:
        optimizer: a ``LazyCall`` of an optimizer with ``params=LazyCall(function)(...)``, where
            ``function`` takes the ``model``, as in Detectron2's ``configs/common/optim.py``.
        **clip_grad: the rule (:func:`gclip_mm.clipping.config.parse.parse_clip_grad`).

    Returns:
        DictConfig: a changed copy.

    Raises:
        ClipConfigError: ``optimizer`` is not such a call.

    Example:
        >>> optimizer = model_zoo.get_config('common/optim.py').SGD
        >>> optimizer = lazy(optimizer, type='Auto')
    """
    is_call = isinstance(optimizer, Mapping) and '_target_' in optimizer
    params = optimizer.get('params') if is_call else None
    if not (isinstance(params, Mapping) and '_target_' in params):
        raise ClipConfigError(
            'lazy: optimizer must be a LazyCall of an optimizer whose params are a LazyCall that '
            'takes the model, as configs/common/optim.py of Detectron2 has them'
        )
    clipped = copy.deepcopy(optimizer)
    clipped['clip_grad'] = read_rule(clip_grad)
    for node, function in ((clipped, build_clipped), (clipped['params'], groups_of)):
        node['clipped_target'] = _name(node['_target_'])
        node['_target_'] = function
    return clipped


def _name(target: Any) -> str:
    return target if isinstance(target, str) else f'{target.__module__}.{target.__qualname__}'


class _Groups(list):
    """Parameter groups that know the model that they are of."""

    model: Any


def groups_of(clipped_target: str, model: Any, **kwargs: Any) -> _Groups:
    """Called by Detectron2 for ``params`` of a :func:`lazy` optimizer."""
    groups = _Groups(instantiate({'_target_': clipped_target, 'model': model, **kwargs}))
    groups.model = model
    return groups


def build_clipped(
    clipped_target: str, clip_grad: Mapping[str, Any], params: _Groups, **kwargs: Any
) -> Optimizer:
    """Called by Detectron2 for a :func:`lazy` optimizer."""
    groups = list(params)
    optimizer = instantiate({'_target_': clipped_target, 'params': groups, **kwargs})
    return clip(optimizer, clip_grad, params.model)
