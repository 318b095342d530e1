"""Refusing an optimizer whose gradients another engine clips already."""

from __future__ import annotations

from torch.optim import Optimizer

from ...checks import ClipConfigError
from .bystander import clipped_optimizers
from .inspection import inner_optimizers
from .seam import StepSeam


def check_not_clipped(optimizer: Optimizer) -> None:
    """Refuse an optimizer that would be clipped twice.

    Raises:
        ClipConfigError: it is clipped, or an optimizer of the same parameters is that it wraps, or
            that wraps it.
    """
    if StepSeam.on(optimizer) is not None:
        raise ClipConfigError(
            'clip_grad: this optimizer is clipped already, and would be twice: remove() the first '
            "handle, or give both rules to one dict(type='ChainClip', clips=[...])"
        )
    kind = type(optimizer).__name__
    for name, inner in inner_optimizers(optimizer).items():
        if inner.param_groups is optimizer.param_groups and StepSeam.on(inner) is not None:
            raise ClipConfigError(
                f'clip_grad: the optimizer in .{name} of {kind} is clipped already, {_REMEDY}'
            )
    for outer in clipped_optimizers():
        if outer.param_groups is not optimizer.param_groups:
            continue
        for name, inner in inner_optimizers(outer).items():
            if inner is optimizer:
                raise ClipConfigError(
                    f'clip_grad: this {kind} is the .{name} of a {type(outer).__name__} that is '
                    f'clipped already, {_REMEDY}'
                )


_REMEDY = (
    'and its gradients would be clipped twice: remove() that handle, or keep it and do not attach '
    'here'
)
