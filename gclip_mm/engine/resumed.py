"""What a resumed optimizer keeps of its own construction."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim import Optimizer

#: Settings of an optimizer that choose how it computes, not what.
KERNEL_SETTINGS = ('fused', 'foreach', 'capturable', 'differentiable')


def keep_kernel_settings(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """The state to load, with the optimizer's own settings of its kernels.

    torch's ``load_state_dict`` replaces every setting of a group by that of the checkpoint. An
    optimizer built with ``fused=True`` would go on without it, and fail under a loss scaler, which
    has been told that it is fused.

    Args:
        optimizer: the optimizer that will load the state.
        state: an optimizer's state; it is not changed.
    """
    groups, saved = optimizer.param_groups, state.get('param_groups')
    if not isinstance(saved, list) or len(saved) != len(groups):
        # torch's own error says what is wrong.
        return state
    own = [{key: group[key] for key in KERNEL_SETTINGS if key in group} for group in groups]
    kept = [{**theirs, **ours} for theirs, ours in zip(saved, own, strict=True)]
    entries = dict(state.get('state', {}))
    for group in kept:
        if group.get('fused') or group.get('capturable'):
            # torch moves the count of steps to the device of the parameter.
            continue
        for key in group['params']:
            if _is_off_host(entries.get(key)):
                # Other kernels read it in every step, which would wait for the device.
                entries[key] = {**entries[key], 'step': entries[key]['step'].cpu()}
    return {**state, 'state': entries, 'param_groups': kept}


def _is_off_host(entry: Any) -> bool:
    step = entry.get('step') if isinstance(entry, dict) else None
    return isinstance(step, Tensor) and step.device.type != 'cpu'
