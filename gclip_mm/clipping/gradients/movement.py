"""How far a step of an optimizer has moved its parameters.

The movement is needed after the step. For the Adam family it follows from the state that the step
leaves behind, so that no memory is held. For all other optimizers the weights are copied before the
step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from ...compat import foreach_copy_
from ..host import host
from .sharding import to_local

#: Given a group, the N parameters after the step and the state of each: what was added to each.
_Formula = Callable[[dict[str, Any], list[Tensor], list[dict[str, Any]]], list[Tensor]]


class Movement(Protocol):
    """What the last step has added to N parameters."""

    def start(self, params: list[Tensor]) -> None:
        """The step is about to run; ``params`` are the N parameters (local shards)."""

    def of(self, chosen: list[int]) -> list[Tensor]:
        """``new - old`` of the chosen parameters, in memory of their own; at least float32."""

    def old(self, i: int, delta: Tensor) -> Tensor:
        """Parameter ``i`` as it was before the step, given its movement."""

    def copies(self, chosen: list[int]) -> list[Tensor] | None:
        """The chosen parameters before the step, which must not be changed; None if not kept."""


class CopiedMovement:
    """Compares the parameters with a copy of them.

    Args:
        owners: the N parameters as the optimizer knows them.
        memory: the copies by the ``id`` of their parameter. Movements of overlapping sets of
            parameters share it, so that there is one copy of each.
    """

    def __init__(self, owners: list[Tensor], memory: dict[int, Tensor]) -> None:
        self._owners = owners
        self._memory = memory
        self._params: list[Tensor] = []
        self._copies: list[Tensor] = []

    def start(self, params: list[Tensor]) -> None:
        """Copy the parameters, into the memory of the last copy."""
        self._params = [param.detach() for param in params]
        if not self._copies:
            self._copies = list(map(self._copy_of, self._owners, self._params))
        foreach_copy_(self._copies, self._params)

    def _copy_of(self, owner: Tensor, param: Tensor) -> Tensor:
        copy = self._memory.get(id(owner))
        # A model may have been moved since; an id is given again after its parameter is gone.
        if copy is None or _kind(copy) != _kind(param):
            copy = self._memory[id(owner)] = torch.empty_like(param)
        return copy

    def of(self, chosen: list[int]) -> list[Tensor]:
        """The difference to the copy."""
        news, olds = ([_wide(ts[i]) for i in chosen] for ts in (self._params, self._copies))
        return list(torch._foreach_sub(news, olds))

    def old(self, i: int, delta: Tensor) -> Tensor:
        """The copy."""
        return self._copies[i]

    def copies(self, chosen: list[int]) -> list[Tensor]:
        """The copies."""
        return [self._copies[i] for i in chosen]


class StateMovement:
    """Computes the movement from the optimizer's state; holds no memory between two calls.

    Args:
        optimizer: an optimizer for which :func:`movement_of` found a formula.
        formula: the formula.
        owners: the N parameters as the optimizer knows them.
        groups: the parameter group of each.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        formula: _Formula,
        owners: list[Tensor],
        groups: list[dict[str, Any]],
    ) -> None:
        self._optimizer = optimizer
        self._formula = formula
        self._owners = owners
        self._groups = groups
        self._params: list[Tensor] = []

    def start(self, params: list[Tensor]) -> None:
        """Nothing is kept but the references."""
        self._params = [param.detach() for param in params]

    def of(self, chosen: list[int]) -> list[Tensor]:
        """The movement by the optimizer's formula."""
        state = self._optimizer.state
        by_group: dict[int, list[int]] = {}
        for i in chosen:
            by_group.setdefault(id(self._groups[i]), []).append(i)
        found: dict[int, Tensor] = {}
        for members in by_group.values():
            states = [state[self._owners[i]] for i in members]
            news = [self._params[i] for i in members]
            deltas = self._formula(self._groups[members[0]], news, states)
            found.update(zip(members, deltas, strict=True))
        return [found[i] for i in chosen]

    def old(self, i: int, delta: Tensor) -> Tensor:
        """The parameter less its movement."""
        return self._params[i] - delta

    def copies(self, chosen: list[int]) -> None:
        """Not kept."""


def movement_of(
    optimizer: Optimizer,
    owners: list[Tensor],
    groups: list[dict[str, Any]],
    memory: dict[int, Tensor],
) -> Movement:
    """The movement of some parameters of an optimizer.

    Args:
        optimizer: the optimizer.
        owners: the N parameters, as in its groups.
        groups: the parameter group of each.
        memory: see :class:`CopiedMovement`.
    """
    formula = _FORMULAS.get(_stepping_class(optimizer))
    if formula is None or not all(map(_is_plain, groups)):
        return CopiedMovement(owners, memory)
    return StateMovement(optimizer, formula, owners, groups)


def _stepping_class(optimizer: Optimizer) -> type | None:
    """The class whose ``step`` an optimizer runs."""
    return next((cls for cls in type(optimizer).__mro__ if 'step' in vars(cls)), None)


def _is_plain(group: dict[str, Any]) -> bool:
    # A rate on the device would make the host wait.
    return not isinstance(group['lr'], Tensor) and not group.get('differentiable')


# -- formulas ------------------------------------------------------------------------------------
def _adam(group: dict[str, Any], news: list[Tensor], states: list[dict[str, Any]]) -> list[Tensor]:
    """``-lr * m_hat / (sqrt(v_hat) + eps)``: arXiv 1412.6980, algorithm 1."""
    first, second = group['betas']
    name = 'max_exp_avg_sq' if group['amsgrad'] else 'exp_avg_sq'
    ones, roots = _corrections(first, states), _corrections(second, states, root=True)
    # m / one / (sqrt(v) / root + eps) = m * (root / one) / (sqrt(v) + root * eps)
    sizes = list(torch._foreach_sqrt(_local(states, name)))
    torch._foreach_add_(sizes, [root * group['eps'] for root in roots])
    deltas = list(torch._foreach_div(_local(states, 'exp_avg'), sizes))
    pairs = zip(roots, ones, strict=True)
    torch._foreach_mul_(deltas, [root / one * -group['lr'] for root, one in pairs])
    return deltas


def _adamw(group: dict[str, Any], news: list[Tensor], states: list[dict[str, Any]]) -> list[Tensor]:
    """Adam after ``w *= 1 - lr * weight_decay``: arXiv 1711.05101, algorithm 2."""
    return _with_decay(group, news, _adam(group, news, states))


def _adam_or_adamw(
    group: dict[str, Any], news: list[Tensor], states: list[dict[str, Any]]
) -> list[Tensor]:
    is_decoupled = group.get('decoupled_weight_decay', False)
    return (_adamw if is_decoupled else _adam)(group, news, states)


def _adamax(
    group: dict[str, Any], news: list[Tensor], states: list[dict[str, Any]]
) -> list[Tensor]:
    """``-lr * m_hat / u`` with the largest gradient ``u``: arXiv 1412.6980, algorithm 2."""
    deltas = list(torch._foreach_div(_local(states, 'exp_avg'), _local(states, 'exp_inf')))
    torch._foreach_div_(deltas, _corrections(group['betas'][0], states))
    torch._foreach_mul_(deltas, -group['lr'])
    return deltas


def _with_decay(group: dict[str, Any], news: list[Tensor], deltas: list[Tensor]) -> list[Tensor]:
    """Add a decoupled decay, which acts on the weights before the step.

    With ``a = lr * weight_decay`` the step is ``new = (1 - a) * old + delta``, so that
    ``new - old = (delta - a * new) / (1 - a)``.
    """
    decay = group['lr'] * group['weight_decay']
    if decay:
        torch._foreach_add_(deltas, [_wide(new) for new in news], alpha=-decay)
        torch._foreach_div_(deltas, 1 - decay)
    return deltas


def _corrections(beta: float, states: list[dict[str, Any]], root: bool = False) -> list[Any]:
    """``1 - beta ** step`` of each parameter, or its root; tensors where the step is one."""
    steps = [state['step'] for state in states]
    counts = [host(step) if isinstance(step, Tensor) else step for step in steps]
    # A count of 0: a fused optimizer has passed over its first step.
    if all(count is not None for count in counts):
        powers: list[Any] = [1 - beta ** max(int(count), 1) for count in counts]
        return [math.sqrt(power) for power in powers] if root else powers
    # On the device (capturable, fused): the host need not know the count.
    powers = [1 - torch.pow(beta, step.double().clamp(min=1)) for step in steps]
    return [power.sqrt() for power in powers] if root else powers


def _local(states: Iterable[dict[str, Any]], name: str) -> list[Tensor]:
    return [_wide(to_local(state[name])) for state in states]


def _kind(tensor: Tensor) -> tuple[torch.Size, torch.dtype, torch.device]:
    return tensor.shape, tensor.dtype, tensor.device


def _wide(tensor: Tensor) -> Tensor:
    """The tensor in float32, or in float64 if it is."""
    return tensor if tensor.dtype in _WIDE else tensor.float()


_WIDE = (torch.float32, torch.float64)


#: The optimizers whose movement follows from their state, by the class that defines ``step``.
_FORMULAS: dict[type | None, _Formula] = {
    torch.optim.Adam: _adam_or_adamw,
    torch.optim.AdamW: _adamw,
    torch.optim.Adamax: _adamax,
}
