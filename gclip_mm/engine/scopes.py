"""Registers the modules of the package that a config's ``default_scope`` names."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE

from ..compat import is_installed


def register_scope(cfg: Config) -> None:
    """Register the modules of ``default_scope``, as the training tool of its package does.

    MMEngine imports the modules of its own family (mmseg, mmpose and others) and of a package whose
    registries name their ``locations`` by itself. The tools of other packages call a function
    ``register_all_modules`` of ``<scope>.utils`` or ``<scope>``; so does this function. Nothing
    happens if the package is not installed or has no such function: ``custom_imports`` may do it.

    Args:
        cfg: a config; ``default_scope`` may be absent or None. It is not changed.

    Raises:
        Exception: an error of the package itself, while its modules are imported.

    Example:
        >>> default_scope = 'my_project'  # my_project/utils.py has register_all_modules
    """
    scope = cfg.get('default_scope')
    if scope is None or scope in MODULE2PACKAGE or not is_installed(scope):
        return
    for name in (f'{scope}.utils', scope):
        if find_spec(name) is None:
            continue
        register = getattr(import_module(name), 'register_all_modules', None)
        if callable(register):
            _call(register)
            return


def _call(register: Callable[..., Any]) -> None:
    try:
        # The runner sets the default scope by itself, and would warn of one that is set before.
        register(init_default_scope=False)
    except TypeError as error:
        if 'init_default_scope' not in str(error):
            raise
        register()
