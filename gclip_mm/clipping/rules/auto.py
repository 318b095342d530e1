"""Clipping without a threshold: bounds how far a step may move each unit."""

from __future__ import annotations

import math
import warnings
from operator import is_
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..base import Finite, Measure, Outcome, UnitClipper, Update
from ..checks import ClipConfigError, check_choice, check_number
from ..config.registry import CLIPPERS
from ..gradients.movement import Movement, movement_of
from ..gradients.norm_layers import followers
from ..gradients.view import GradView
from .auto_units import AutoUnits

#: The part of ``reach`` and ``total`` that a single update may take. A gradient moves the weights
#: by its momentum as well, some ten times as far as in its own step, while successive updates of
#: Adam partly cancel. Chosen by results/auto.
OF_ONE_UPDATE = 0.2


class _Known(NamedTuple):
    """What stays the same between the steps of a view.

    Attributes:
        view: the gradients.
        groups: the groups of the optimizer.
        units: its units.
        movement: how far a step moves its parameters.
    """

    view: GradView
    groups: list[dict[str, Any]]
    units: AutoUnits
    movement: Movement

    def is_of(self, groups: list[dict[str, Any]]) -> bool:
        """Whether these are the groups, and not copies of them."""
        return len(groups) == len(self.groups) and all(map(is_, groups, self.groups))


@CLIPPERS.register_module(aliases=('auto',))
class Auto(UnitClipper):
    """Bound how far a step may move each unit, from the optimizer's own learning rate.

    No key is needed. For a unit with weights ``w`` and gradient ``g`` (AGC's units: an output
    filter, a row, a whole bias), a learning rate ``lr`` and a momentum ``m``, the gradient moves
    the unit by ``step = lr / (1 - m) * |g|`` in all. Relative to ``size = max(|w|, floor)``::

        c = min(1, total / sum_l(|step|_l / |size|_l))      l: weights that no live norm follows
        g *= min(c, reach * size / step)                    c = 1 for all other units

    ``lr`` is the peak of the schedule: the largest of the group's ``lr``, ``initial_lr`` and
    ``max_lr``. Warm-up and decay then act as the schedule means them. The first line keeps the
    direction of the gradient for layers whose scale no batch norm absorbs: heads, and backbones
    with frozen statistics.

    An optimizer whose step is not proportional to the gradient (AdamW, Lion, ...) is bounded on the
    side of the update: it steps, and what moved too far is taken back. One update may take a fifth
    of ``reach`` and of ``total``. For Adam, AdamW and Adamax the movement follows from the
    optimizer's state; for all others one copy of the weights is kept.

    Good for: a first training of any detector, learning rates above the usual one, runs that end in
    NaN. Bad for: a schedule that was tuned together with a hand-set threshold; models without a
    known unit (FSDP1); embeddings that must move far from a small start.

    Args:
        reach: largest relative step of a unit, above 0.
        total: largest sum of the relative steps of all weights that no live norm layer follows,
            above 0.
        side: ``'gradient'`` or ``'update'``; None: by the class of the optimizer.

    Raises:
        ClipConfigError: a value out of range; ``side='gradient'`` with an optimizer whose step is
            not proportional to the gradient.

    Source: this package, docs/auto.md.

    Example:
        >>> optim_wrapper = dict(
        ...     type='GClipOptimWrapper',
        ...     optimizer=dict(type='SGD', lr=0.02, momentum=0.9),
        ...     clip_grad=dict(type='Auto'))
    """

    thresholds = ('reach', 'total')
    source = 'docs/auto.md'

    def __init__(self, reach: float = 0.05, total: float = 0.3, side: str | None = None) -> None:
        check_number('reach', reach, low=0, open_low=True)
        check_number('total', total, low=0, open_low=True)
        check_choice('side', side, (None, 'gradient', 'update'))
        self.reach = reach
        self.total = total
        self.side = side
        self._optimizer: Optimizer | None = None
        self._has_model = self._has_warned = False
        self._norms: dict[int, nn.Module] = {}
        self._views: dict[int, _Known] = {}
        # Copies of the weights that all views share.
        self._memory: dict[int, Tensor] = {}
        self._sizes: Tensor | None = None
        self._is_taken: Tensor | None = None

    # -- what it is attached to ------------------------------------------------------------------
    def check_optimizer(self, optimizer: Optimizer) -> None:
        if self.side == 'gradient' and not is_proportional(optimizer):
            raise ClipConfigError(
                f"clip_grad: side='gradient' does not bound {type(optimizer).__name__}, whose step "
                "is not proportional to the gradient: leave 'side' out, or set side='update'"
            )

    def bind(self, optimizer: Optimizer, model: nn.Module | None) -> None:
        self._optimizer = optimizer
        self._has_model = model is not None
        self._norms = followers(model)
        self._forget()

    def _forget(self) -> None:
        self._views.clear()
        self._memory.clear()

    @property
    def bounds_updates(self) -> bool:
        if self.side is not None:
            return self.side == 'update'
        return self._optimizer is not None and not is_proportional(self._optimizer)

    def _known(self, view: GradView) -> _Known:
        """What is known of a view; found out again when the groups of the optimizer change."""
        optimizer = self._optimizer
        if optimizer is None:
            raise ClipConfigError('clip_grad: Auto has to be attached to an optimizer')
        known = self._views.get(id(view))
        # Optimizer.load_state_dict puts new dicts in place of the groups.
        if known is None or known.view is not view or not known.is_of(optimizer.param_groups):
            if len(self._views) >= 16:
                self._forget()
            if not (self._has_model or self._has_warned):
                self._has_warned = True
                warnings.warn(
                    'clip_grad: Auto does not know the model, and holds every layer back as if no '
                    'norm layer followed it: pass it (attach(optimizer, clip_grad, model=model))',
                    stacklevel=2,
                )
            groups = [group for group in optimizer.param_groups for _ in group['params']]
            groups = [groups[position] for position in view.positions]
            norms = [self._norms.get(id(info.module)) for info in view.infos]
            owners = [info.param for info in view.infos]
            known = self._views[id(view)] = _Known(
                view,
                list(optimizer.param_groups),
                AutoUnits(view, groups, norms),
                movement_of(optimizer, owners, groups, self._memory),
            )
        return known

    def _units_of(self, view: GradView) -> AutoUnits:
        units = self._known(view).units
        units.refresh()
        return units

    # -- the gradient's side ---------------------------------------------------------------------
    def decide(self, norms: Tensor, weights: Tensor, view: GradView) -> tuple[Tensor, Tensor]:
        units = self._units_of(view)
        steps = norms.double() * units.rates(_gain).to(norms.device)
        bounds = self.reach, self.total
        return _bounded(steps, units.sizes(weights), units, view, norms, *bounds)

    # -- the update's side -----------------------------------------------------------------------
    def clip(self, view: GradView, measure: Measure, finite: Finite) -> Outcome:
        if not self.bounds_updates:
            return super().clip(view, measure, finite)
        self._sizes = self._units_of(view).sizes(view.backend.unit_weights())
        self._is_taken = finite.flag
        self._known(view).movement.start(view.params)
        return Outcome(None, measure.norm, math.inf, 0.0, max(view.backend.unit_count, 1))

    def after_step(self, view: GradView) -> Update | None:
        """Take back what the step moved beyond the bound."""
        if not self.bounds_updates or self._sizes is None:
            return None
        sizes, self._sizes = self._sizes, None
        movement = self._known(view).movement
        moved = view.backend.change_norms(movement).double()
        if self._is_taken is not None:
            # The kernel of a fused optimizer may have passed over the step; its state then tells of
            # the last step that was taken.
            moved = torch.where(self._is_taken.to(moved.device), moved, 0.0)
        reach, total = self.reach * OF_ONE_UPDATE, self.total * OF_ONE_UPDATE
        units = self._units_of(view)
        coefs, bounds = _bounded(moved, sizes, units, view, moved, reach, total)
        view.backend.shorten_change(movement, coefs)
        totals = view.backend.unit_totals
        movement_norm = totals(moved, bounds, coefs < 1)[0]
        kept, bound, clipped, parts = totals(moved * coefs, bounds, coefs < 1)
        return Update(coefs, movement_norm, kept, bound, clipped, max(parts, 1))


def _bounded(
    steps: Tensor,
    sizes: Tensor,
    units: AutoUnits,
    view: GradView,
    norms: Tensor,
    reach: float,
    total: float,
) -> tuple[Tensor, Tensor]:
    """Coefficients and bounds (U,) of units that would move too far.

    Args:
        steps: (U,) how far each unit would move.
        sizes: (U,) what that is measured against.
        units: the units of the view.
        view: the gradients.
        norms: (U,) what the coefficients multiply, and the bounds limit.
        reach: largest relative step of a unit.
        total: largest sum of the relative steps of the weights that no live norm follows.
    """
    coefs = reach * sizes / steps
    if units.has_loose:
        # In float64 no square of a float32 number over- or underflows.
        sums = view.backend.unit_sums(torch.stack([steps.square(), sizes.square()], dim=1))
        lengths = (sums[:, 0] / sums[:, 1]).sqrt()
        # A tensor without elements has no length.
        moved = torch.where(units.counts & (sums[:, 1] > 0), lengths, 0.0).sum()
        shrink = torch.clamp(total / moved, max=1.0)
        coefs = torch.where(units.loose, torch.minimum(coefs, shrink), coefs)
    # Zero gradients, and learning rates of zero, move nothing.
    coefs = torch.where(steps > 0, coefs.clamp(max=1.0), 1.0)
    bounds = torch.where(coefs < 1, norms * coefs, norms * (reach * sizes / steps))
    return coefs, torch.where(steps > 0, bounds, 0.0)


def is_proportional(optimizer: Optimizer) -> bool:
    """Whether the step of an optimizer is proportional to the gradient, as that of SGD.

    An optimizer of one's own can say so by the attribute ``is_step_proportional = True``.
    """
    inner = getattr(optimizer, 'optim', None)
    stepper = inner if isinstance(inner, Optimizer) else optimizer
    names = {cls.__name__ for cls in type(stepper).__mro__}
    is_known = not names.isdisjoint(('SGD', 'SGDW', 'ASGD', 'NesterovSGD'))
    return bool(getattr(stepper, 'is_step_proportional', is_known))


def _gain(group: dict[str, Any]) -> float:
    """How far a gradient of length 1 moves the weights in all, at the peak of the schedule."""
    rate = max(float(group.get(key) or 0.0) for key in ('lr', 'initial_lr', 'max_lr'))
    momentum = float(group.get('momentum') or 0.0)
    if momentum == 0:
        return rate
    return rate * (1 - float(group.get('dampening') or 0.0)) / (1 - momentum)
