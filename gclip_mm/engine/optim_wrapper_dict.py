"""Members of an ``OptimWrapperDict`` log under their own names."""

from __future__ import annotations

import functools

from mmengine.optim import OptimWrapperDict


def name_members() -> None:
    """Have ``OptimWrapperDict`` tell its members their names when it is built.

    MMEngine gives a member no other way to learn it, and without it two members would write to one
    log key. The names follow the form of MMEngine's own ``get_lr``: ``generator.grad_norm``.
    """
    build = OptimWrapperDict.__init__
    if getattr(build, '_names_members', False):
        return

    @functools.wraps(build)
    def build_and_name(self, **members) -> None:
        build(self, **members)
        for name, member in members.items():
            if hasattr(member, 'log_prefix'):
                member.log_prefix = f'{name}.'

    build_and_name._names_members = True
    OptimWrapperDict.__init__ = build_and_name
