"""How far a step of an optimizer has moved its parameters.

The movement is needed after the step. For the Adam family it follows from the state that the step
leaves behind, so that no memory is held. For all other optimizers the weights are copied before the
step.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import is_, itemgetter
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from ...compat import foreach_copy_
from ..host import host
from .sharding import is_dtensor, to_local


class Ratio(NamedTuple):
    """What was added to N parameters: ``rate * first / (size + eps) + decay * new``.

    ``new`` is the parameter after the step, and ``size`` is ``second`` or its root. The numbers of
    a parameter are tensors (0-d) where only the device knows the count of its steps.

    Attributes:
        firsts: N tensors.
        seconds: N tensors.
        is_root: whether ``size`` is the root of ``second``.
        rates: N numbers.
        eps: N numbers.
        decays: N numbers, on the host.
        is_known: whether the host knows all numbers.
    """

    firsts: list[Tensor]
    seconds: list[Tensor]
    is_root: bool
    rates: list[Any]
    eps: list[Any]
    decays: list[float]
    is_known: bool

    def of(self, chosen: list[int]) -> Ratio:
        """The same of the chosen parameters."""
        return self._replace(
            firsts=[self.firsts[i] for i in chosen],
            seconds=[self.seconds[i] for i in chosen],
            rates=[self.rates[i] for i in chosen],
            eps=[self.eps[i] for i in chosen],
            decays=[self.decays[i] for i in chosen],
        )


class Difference(NamedTuple):
    """What was added to N parameters: ``new - old``.

    Attributes:
        olds: N tensors.
    """

    olds: list[Tensor]


#: Given a group, the states of its N parameters and how many steps each has taken (numbers, or
#: tensors where only the device knows): what was added to each.
_Formula = Callable[[dict[str, Any], list[dict[str, Any]], list[Any]], Ratio]


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

    def terms(self) -> Ratio | Difference:
        """The movement of all N parameters as a formula, for a kernel that evaluates it."""


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

    def terms(self) -> Difference:
        """The difference to the copies."""
        return Difference(self._copies)


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
        self._is_sharded = any(map(is_dtensor, owners))
        places: dict[int, list[int]] = {}
        for i, group in enumerate(groups):
            places.setdefault(id(group), []).append(i)
        # Each group with the indices of its parameters.
        self._members = [(groups[some[0]], some) for some in places.values()]
        self._params: list[Tensor] = []
        self._terms: Ratio | None = None
        # All states of the optimizer, and those of the parameters.
        self._seen: list[dict[str, Any]] = []
        self._states: list[dict[str, Any]] = []

    def start(self, params: list[Tensor]) -> None:
        """Nothing is kept but the references."""
        self._params = [param.detach() for param in params]
        self._terms = None

    def of(self, chosen: list[int]) -> list[Tensor]:
        """The movement by the optimizer's formula."""
        ratio = self.terms().of(chosen)
        seconds = list(map(_wide, ratio.seconds))
        sizes = torch._foreach_sqrt(seconds) if ratio.is_root else seconds
        sizes = torch._foreach_add(sizes, ratio.eps)
        deltas = list(torch._foreach_div(list(map(_wide, ratio.firsts)), sizes))
        torch._foreach_mul_(deltas, ratio.rates)
        if any(ratio.decays):
            news = [_wide(self._params[i]) for i in chosen]
            torch._foreach_add_(deltas, torch._foreach_mul(news, ratio.decays))
        return deltas

    def terms(self) -> Ratio:
        """The optimizer's formula."""
        if self._terms is None:
            self._terms = self._ratio()
        return self._terms

    def _ratio(self) -> Ratio:
        state = self._optimizer.state
        # A list of all states is compared at once, and each is looked up by its parameter only if
        # one was replaced: this runs in each step.
        seen = list(state.values())
        if len(seen) != len(self._seen) or not all(map(is_, seen, self._seen)):
            self._seen, self._states = seen, [state[owner] for owner in self._owners]
        steps = _counts([state['step'] for state in self._states])
        parts = [
            self._formula(group, [self._states[i] for i in some], [steps[i] for i in some])
            for group, some in self._members
        ]
        ratio = parts[0] if len(parts) == 1 else self._joined(parts)
        if self._is_sharded:
            firsts, seconds = (list(map(to_local, ts)) for ts in (ratio.firsts, ratio.seconds))
            ratio = ratio._replace(firsts=firsts, seconds=seconds)
        return ratio

    def _joined(self, parts: list[Ratio]) -> Ratio:
        """The ratios of all groups, in the order of the parameters."""
        order = [i for _, some in self._members for i in some]
        back = sorted(range(len(order)), key=order.__getitem__)
        every = Ratio(
            [tensor for part in parts for tensor in part.firsts],
            [tensor for part in parts for tensor in part.seconds],
            parts[0].is_root,
            [number for part in parts for number in part.rates],
            [number for part in parts for number in part.eps],
            [number for part in parts for number in part.decays],
            parts[0].is_known,
        )
        return every.of(back)

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
def _adam(group: dict[str, Any], states: list[dict[str, Any]], steps: list[Any]) -> Ratio:
    """``-lr * m_hat / (sqrt(v_hat) + eps)``: arXiv 1412.6980, algorithm 1.

    With ``m_hat = m / one`` and ``sqrt(v_hat) = sqrt(v) / root`` that is
    ``-lr * root / one * m / (sqrt(v) + root * eps)``.
    """
    first, second = group['betas']
    names = 'exp_avg', 'max_exp_avg_sq' if group['amsgrad'] else 'exp_avg_sq'
    roots = {step: (1 - second**step) ** 0.5 for step in set(steps)}
    rates = {step: root / (1 - first**step) * -group['lr'] for step, root in roots.items()}
    eps = [roots[step] * group['eps'] for step in steps]
    return _ratio(states, names, True, [rates[step] for step in steps], eps)


def _adamw(group: dict[str, Any], states: list[dict[str, Any]], steps: list[Any]) -> Ratio:
    """Adam after ``w *= 1 - lr * weight_decay``: arXiv 1711.05101, algorithm 2.

    With ``a = lr * weight_decay`` the step is ``new = (1 - a) * old + delta``, so that
    ``new - old = (delta - a * new) / (1 - a)``.
    """
    ratio = _adam(group, states, steps)
    decay = group['lr'] * group['weight_decay']
    if not decay:
        return ratio
    rates = [rate / (1 - decay) for rate in ratio.rates]
    return ratio._replace(rates=rates, decays=[-decay / (1 - decay)] * len(rates))


def _adam_or_adamw(group: dict[str, Any], states: list[dict[str, Any]], steps: list[Any]) -> Ratio:
    is_decoupled = group.get('decoupled_weight_decay', False)
    return (_adamw if is_decoupled else _adam)(group, states, steps)


def _adamax(group: dict[str, Any], states: list[dict[str, Any]], steps: list[Any]) -> Ratio:
    """``-lr * m_hat / u`` with the largest gradient ``u``: arXiv 1412.6980, algorithm 2."""
    rates = {step: -group['lr'] / (1 - group['betas'][0] ** step) for step in set(steps)}
    names = 'exp_avg', 'exp_inf'
    return _ratio(states, names, False, [rates[step] for step in steps], [0.0] * len(steps))


def _ratio(
    states: list[dict[str, Any]],
    names: tuple[str, str],
    is_root: bool,
    rates: list[Any],
    eps: list[Any],
) -> Ratio:
    firsts, seconds = (list(map(itemgetter(name), states)) for name in names)
    is_known = not isinstance(rates[0], Tensor)
    return Ratio(firsts, seconds, is_root, rates, eps, [0.0] * len(rates), is_known)


def _counts(steps: list[Any]) -> list[Any]:
    """How many steps each parameter has taken; all tensors where only the device knows."""
    # A count of 0: a fused optimizer has passed over its first step.
    if not any(isinstance(step, Tensor) for step in steps):
        return [max(step, 1) for step in steps]
    if {-1}.issuperset(map(Tensor.get_device, steps)) and host(steps[0]) is not None:
        counts: list[float] = torch.stack(steps).clamp(min=1).tolist()
        return counts
    return [step.double().clamp(min=1) for step in steps]


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
