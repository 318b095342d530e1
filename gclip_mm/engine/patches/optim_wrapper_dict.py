"""Members of an ``OptimWrapperDict`` log under their own names, and know the model."""

from __future__ import annotations

import functools

from mmengine.optim import OptimWrapperDict


def name_members() -> None:
    """Have ``OptimWrapperDict`` tell its members their names when it is built, and of the model.

    MMEngine gives a member no other way to learn them. Without names two members would write to one
    log key; they follow the form of MMEngine's own ``get_lr``: ``generator.grad_norm``. Without the
    model there would be no routes, and AGC would take a transposed convolution for an ordinary one.
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

    initialize = OptimWrapperDict.initialize_count_status

    @functools.wraps(initialize)
    def initialize_and_bind(self, model, *args, **kwargs) -> None:
        for member in self.values():
            if getattr(member, 'engine', None) is not None:
                member.engine.bind(model)
        initialize(self, model, *args, **kwargs)

    build_and_name._names_members = True
    OptimWrapperDict.__init__ = build_and_name
    OptimWrapperDict.initialize_count_status = initialize_and_bind
