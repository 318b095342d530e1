"""Tells the step of an optimizer's parent class from the step that called it.

PyTorch runs the hooks around ``step`` of every class that an optimizer has been made of. Of ::

    class Mine(torch.optim.SGD):
        def step(self, closure=None):
            return super().step(closure)

and with a plain SGD somewhere in the process that is twice in each step, of which one is to clip.
"""

from __future__ import annotations

import sys

from torch.optim import Optimizer


def is_nested(optimizer: Optimizer) -> bool:
    """Whether the step whose hooks are running was called by another one of the same optimizer.

    Asked by a hook. It looks at the calls that led there and not at what was noted before: a step
    that raises never says that it is over.
    """
    steps = [vars(cls).get('step') for cls in type(optimizer).__mro__]
    if sum(hasattr(step, 'hooked') for step in steps) < 2:
        return False
    calls = 0
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code is _HOOKS_RUNNER and frame.f_locals['args'][0] is optimizer:
            calls += 1
        frame = frame.f_back
    return calls > 1


# What runs the hooks, and has the optimizer first among its arguments; the same for all classes.
_HOOKS_RUNNER = Optimizer.profile_hook_step(lambda self: None).__code__
