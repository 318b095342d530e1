"""Applies a clipping recipe to any MMEngine config; ``tools/train.py --clip`` calls it."""

from __future__ import annotations

import copy
import difflib
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.optim import AmpOptimWrapper, OptimWrapper

from ..clipping.checks import ClipConfigError
from ..clipping.config.inline import parse_inline
from ..clipping.config.parse import parse_clip_grad
from ..clipping.config.registry import CLIPPERS
from .configs import (
    clip_hooks,
    drop_clip_hooks,
    import_us,
    load_config,
    optim_wrappers,
    wrapper_class,
)
from .optim_wrapper import GClipAmpOptimWrapper, GClipOptimWrapper
from .strategies import FOREIGN_WRAPPERS, hand_over, refuse

_PACKAGE = Path(__file__).resolve().parents[1]
#: Folder of the recipes, in a checkout or in an installed package.
RECIPES = next(
    (
        folder
        for root in (_PACKAGE.parent, _PACKAGE / '.mim')
        if (folder := root / 'configs' / '_base_' / 'clip').is_dir()
    ),
    _PACKAGE.parent,
)


def apply_clip(
    cfg: Config, recipe: str | dict[str, Any], options: dict[str, Any] | None = None
) -> Config:
    """Make a config train with a clipping recipe; all its other settings stay.

    The optimizer, its parameter-wise settings and constructor, accumulation and mixed precision are
    kept. An existing ``clip_grad`` is replaced:

    * ``OptimWrapper`` becomes ``GClipOptimWrapper``, and ``AmpOptimWrapper`` becomes
      ``GClipAmpOptimWrapper``. With several wrappers (``OptimWrapperDict``) each member is clipped.
    * A ``GClipHook`` is removed. If the wrapper cannot be exchanged, the hook stays and gets the
      recipe.
    * A DeepSpeed or ColossalAI strategy gets a norm rule as its own setting.

    Args:
        cfg: a config, old style or new; it is changed in place.
        recipe: a ``clip_grad`` dict; or a file that sets ``optim_wrapper.clip_grad``, as a path or
            as the name of one in ``configs/_base_/clip``; or ``'type=AGC,clip_factor=0.01'``.
        options: the values of ``--cfg-options``. Those for ``clip_grad`` override the recipe, such
            as ``{'optim_wrapper.clip_grad.max_norm': 3}``.

    Returns:
        Config: ``cfg`` itself.

    Raises:
        ClipConfigError: an invalid recipe, or an optimizer wrapper that cannot be exchanged without
            losing a function.

    Example:
        >>> cfg = Config.fromfile('mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py')
        >>> Runner.from_cfg(gclip_mm.apply_clip(cfg, 'type=AGC,clip_factor=0.01')).train()
    """
    clip_grad = recipe if isinstance(recipe, dict) else read_recipe(recipe)
    options = options or {}
    shared = _with_options(clip_grad, options, 'optim_wrapper')
    rules = {'optim_wrapper': shared}
    for key, _ in optim_wrappers(cfg):
        if key not in rules:
            rules[key] = _with_options(shared, options, key)
    for rule in rules.values():
        parse_clip_grad(rule)
    if hand_over(cfg, rules['optim_wrapper']):
        import_us(cfg)
        return cfg
    wrappers = list(optim_wrappers(cfg))
    if not wrappers:
        hint = ' (it has the MMDetection 2 key "optimizer")' if cfg.get('optimizer') else ''
        raise ClipConfigError(f'the config has no optim_wrapper with an optimizer{hint}')
    twins = {
        OptimWrapper: GClipOptimWrapper,
        AmpOptimWrapper: GClipAmpOptimWrapper,
        GClipOptimWrapper: GClipOptimWrapper,
        GClipAmpOptimWrapper: GClipAmpOptimWrapper,
    }
    # Check all wrappers before any is changed, so that an error leaves the config unchanged.
    chosen = []
    for key, wrapper in wrappers:
        twin = twins.get(wrapper_class(wrapper))
        if twin is None and wrapper['type'] in FOREIGN_WRAPPERS:
            refuse(wrapper['type'], clip_grad)
        hooks = clip_hooks(cfg)
        if twin is None and len(wrappers) == len(hooks) == 1:
            hooks[0]['clip_grad'] = rules[key]
            import_us(cfg)
            return cfg
        if twin is None:
            raise ClipConfigError(
                f'{key}.type {wrapper["type"]!r} cannot be exchanged without losing a function; '
                f'valid types: {", ".join(kind.__name__ for kind in twins)}. If it steps an '
                "ordinary torch optimizer, add custom_hooks=[dict(type='GClipHook', "
                'clip_grad=...)] instead'
            )
        chosen.append((wrapper, twin, rules[key]))
    for wrapper, twin, rule in chosen:
        wrapper['type'] = twin.__name__
        # Removed first, because an assignment to a ConfigDict may merge with the old value.
        wrapper.pop('clip_grad', None)
        wrapper['clip_grad'] = rule
    drop_clip_hooks(cfg)
    import_us(cfg)
    return cfg


def load_clipped(
    name: str,
    recipe: str | None,
    options: dict[str, Any] | None,
    work_dir: str | None,
    launcher: str,
) -> Config:
    """:func:`~gclip_mm.engine.configs.load_config`, and :func:`apply_clip` if there is a recipe.

    With a recipe, options for ``clip_grad`` apply to the recipe and not to the ``clip_grad`` of the
    config, which may be None.

    Args:
        name: see :func:`~gclip_mm.engine.configs.find_config`.
        recipe: the value of ``--clip``; None: the config keeps its own ``clip_grad``.
        options: the values of ``--cfg-options``.
        work_dir: the value of ``--work-dir``.
        launcher: the value of ``--launcher``.

    Raises:
        LaunchError: the config does not exist.
        ClipConfigError: see :func:`apply_clip`.
    """
    if recipe is None:
        return load_config(name, options, work_dir, launcher)
    options = options or {}
    clipping = {key: value for key, value in options.items() if _sets_clip_grad(key, value)}
    rest = {key: value for key, value in options.items() if key not in clipping}
    return apply_clip(load_config(name, rest, work_dir, launcher), recipe, clipping)


def _sets_clip_grad(key: str, value: Any) -> bool:
    return 'clip_grad' in key.split('.') or (isinstance(value, dict) and 'clip_grad' in value)


def _with_options(clip_grad: dict[str, Any], options: dict[str, Any], key: str) -> dict[str, Any]:
    """The recipe with the options for ``<key>.clip_grad`` applied; the recipe is not changed.

    Raises:
        ClipConfigError: the options replace the whole ``clip_grad``.
    """
    whole = options.get(key)
    key = f'{key}.clip_grad'
    if key in options or (isinstance(whole, dict) and 'clip_grad' in whole):
        raise ClipConfigError(
            f'both the recipe and --cfg-options set {key}: leave one of them out, or set '
            f'single keys of the recipe, such as {key}.max_norm=3'
        )
    own = {k.removeprefix(f'{key}.'): v for k, v in options.items() if k.startswith(f'{key}.')}
    if not own:
        return clip_grad
    merged = Config(dict(clip_grad=copy.deepcopy(dict(clip_grad))))
    merged.merge_from_dict({f'clip_grad.{k}': v for k, v in own.items()})
    return merged.clip_grad.to_dict()


def read_recipe(recipe: str) -> dict[str, Any]:
    """The ``clip_grad`` dict of a recipe: of a file, of its name, or of ``key=value,...``.

    Raises:
        ClipConfigError: the file does not exist, or sets no ``optim_wrapper.clip_grad``.
    """
    if '=' in recipe:
        return parse_inline(recipe)
    path = _find(recipe)
    content = Config.fromfile(str(path))
    clip_grad = (content.get('optim_wrapper') or {}).get('clip_grad')
    if not clip_grad:
        raise ClipConfigError(f'recipe {str(path)!r} sets no optim_wrapper.clip_grad')
    return clip_grad.to_dict() if hasattr(clip_grad, 'to_dict') else clip_grad


def _find(recipe: str) -> Path:
    for path in (Path(recipe), RECIPES / recipe, RECIPES / f'{recipe}.py'):
        if path.is_file():
            return path
    names = sorted(path.stem for path in RECIPES.glob('*.py'))
    near = difflib.get_close_matches(Path(recipe).stem.lower(), names, n=1)
    meant = [repr(name) for name in near] + [repr(f'type={recipe}')] * (recipe in CLIPPERS)
    hint = f'; did you mean {" or ".join(meant)}?' if meant else '.'
    listed = f' Recipes: {", ".join(names)}.' if names else ''
    raise ClipConfigError(
        f'recipe {recipe!r} is not there{hint}{listed} Also valid are the path of a file, or an '
        "inline rule such as 'type=AGC,clip_factor=0.01'"
    )
