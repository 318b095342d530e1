"""The contract of a clipping rule, and the four kinds of rule.

The engine calls a rule twice in a step. :meth:`Clipper.measure` reads the gradients. The engine
then checks whether the step is finite, because a non-finite step must not update the state.
:meth:`Clipper.clip` decides, updates the state of the rule, and changes the gradients.

Most rules are one of four kinds. A kind implements both calls, and the rule only decides:

=======================  ==================  ===========================================
kind                     the rule reads      the rule returns
=======================  ==================  ===========================================
:class:`GlobalClipper`   the total norm      one coefficient
:class:`TensorClipper`   a norm a tensor     a coefficient a tensor
:class:`UnitClipper`     a norm a unit       a coefficient a unit
:class:`ElementClipper`  a norm a tensor     a range for the elements of each tensor
=======================  ==================  ===========================================

The backend of the view (:mod:`gclip_mm.clipping.gradients.backend`) chooses the kernel, writes the
gradients and tells autograd.
"""

from __future__ import annotations

import functools
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.optim import Optimizer

from . import state_fields
from .gradients.backend import Ranges, UnitLimits
from .gradients.norms import combine
from .gradients.view import GradView
from .results import Finite, Measure, Outcome, Update

#: Optional faster equivalents of a decision; see :meth:`Clipper.shortcut`.
SHORTCUTS = ('decision_kernel', 'unit_limits', 'fixed_range')
_DECISIONS = ('measure', 'clip', 'decide', 'ranges')


class Clipper(ABC):
    """A clipping rule. Subclasses are registered in ``CLIPPERS``; one file each.

    The keyword arguments of the constructor are the config keys of the rule. The constructor raises
    :class:`~gclip_mm.clipping.checks.ClipConfigError` for an invalid value.
    """

    #: Order of the norm that the rule reports.
    norm_type: float = 2.0
    #: Config keys that a schedule may drive; each is an attribute that holds a number.
    thresholds: ClassVar[tuple[str, ...]] = ()
    #: Whether all gradients get one coefficient, which a fused optimizer can apply by itself.
    is_global: bool = False
    #: Paper or source, for the docs.
    source: ClassVar[str] = ''
    #: Config keys that build a working rule, beside ``type``; used by docs, tests and benchmarks.
    example: ClassVar[dict[str, Any]] = {}
    #: Schedules of rules within this one (:class:`~gclip_mm.clipping.config.schedules`).
    drivers: Sequence[Any] = ()
    #: Whether clipped-off parts are kept and added to the next gradient (``rules/carry.py``).
    carry: bool = False

    @property
    def name(self) -> str:
        """Name of the rule in checkpoints and messages."""
        return type(self).__name__

    @property
    def core(self) -> Clipper:
        """The rule that decides: this one, or the one that it wraps."""
        return self

    @property
    def never_increases(self) -> bool:
        """Whether the norm never grows; the contract tests check it."""
        return True

    def assembled(self) -> Clipper:
        """The rule that the registry returns: this one, or a wrapper around it."""
        return self

    def check_optimizer(self, optimizer: Optimizer) -> None:  # noqa: B027 (most rules take any)
        """Check the optimizer; called once, before attaching.

        Raises:
            ClipConfigError: the rule does not work with this optimizer.
        """

    def bind(self, optimizer: Optimizer, model: nn.Module | None) -> None:  # noqa: B027
        """Take what the rule needs of the optimizer and the model; most rules need neither.

        Called when the rule is attached, and again when the model becomes known.
        """

    @property
    def bounds_updates(self) -> bool:
        """Whether :meth:`after_step` is to be called."""
        return False

    def after_step(self, view: GradView) -> Update | None:
        """The optimizer has stepped; the parameters of the view may be changed."""
        return None

    @abstractmethod
    def measure(self, view: GradView) -> Measure:
        """Read the gradients.

        Changes nothing, unless ``view.may_write_early`` allows clipping while measuring.
        """

    @abstractmethod
    def clip(self, view: GradView, measure: Measure, finite: Finite) -> Outcome:
        """Decide and apply.

        Args:
            view: the gradients, and the parameters they belong to.
            measure: what :meth:`measure` returned in this step for these gradients.
            finite: whether the step is finite. State must stay unchanged where it is not.
        """

    # -- faster paths ----------------------------------------------------------------------------
    def shortcut(self, name: str) -> Callable[..., Any] | None:
        """A method that lets a kernel decide, if it still describes what the rule decides.

        A subclass that overrides the decision inherits the method of its parent, but the method no
        longer describes the subclass. Such a shortcut is dropped.

        Args:
            name: one of ``SHORTCUTS``.
        """
        return getattr(self, name) if _shortcut_holds(type(self), name) else None

    # -- state -----------------------------------------------------------------------------------
    #: The named tuple that holds the state of the rule, documented there; None: no state.
    State: ClassVar[Any] = None
    #: The fields of the state with one entry per parameter of the route -> the initial value of an
    #: entry.
    per_param: ClassVar[dict[str, Any]] = {}
    #: Whether the state holds an element for each weight, laid out like the gradients.
    elementwise_state: bool = False
    #: The state; None before the first step. Fields are tensors, or lists with one tensor (or None)
    #: for each parameter of the route.
    state: Any = None

    def follow(self, slots: list[int | None]) -> None:
        """Reorder the per-parameter state after the parameters of the route have changed.

        Args:
            slots: the former index of each parameter of the route; None for a new parameter.
        """
        if self.state is not None:
            moved = {
                key: state_fields.moved(getattr(self.state, key), slots, value)
                for key, value in self.per_param.items()
            }
            self.state = self.state._replace(**moved)

    def state_dict(self) -> dict[str, Any]:
        """A copy of the state; {} if there is none."""
        return {} if self.state is None else state_fields.copied(self.state._asdict())

    def reset(self) -> None:
        """Drop the state; the next step starts from scratch."""
        self.state = None

    def load_state_dict(self, state: dict[str, Any], params: list[Tensor]) -> None:
        """Restore what :meth:`state_dict` returned.

        Args:
            state: the state; {} starts from scratch.
            params: the parameters of the route; the state moves to their devices.

        Raises:
            ValueError: the state belongs to another rule.
        """
        if not state:
            self.state = None
            return
        if self.State is None:
            raise ValueError(
                f'{self.name} keeps the state [], got {sorted(state)}. A rule that sets self.state '
                'names the type of its state in the class attribute State'
            )
        if set(state) != set(self.State._fields):
            fields = list(self.State._fields)
            raise ValueError(f'{self.name} keeps the state {fields}, got {sorted(state)}')
        self.state = self.State(
            **{key: state_fields.placed(value, params) for key, value in state.items()}
        )


@functools.cache
def _shortcut_holds(cls: type[Clipper], name: str) -> bool:
    """Whether no class below the one that defines the shortcut overrides the decision."""

    def depth(attribute: str) -> float:
        found = (i for i, base in enumerate(cls.__mro__) if attribute in vars(base))
        return next(found, math.inf)

    place = depth(name)
    return place < math.inf and all(place <= depth(decision) for decision in _DECISIONS)


class CoefClipper(Clipper):
    """A rule that decides one coefficient for all tensors, or one for each tensor."""

    @abstractmethod
    def resolve(self, view: GradView, measure: Measure, finite: Finite) -> tuple[Tensor, Outcome]:
        """Decide without writing; returns the coefficients, 0-d or (N,), and the outcome."""


class GlobalClipper(CoefClipper):
    """A rule that scales all gradients by one coefficient, computed from their total norm."""

    is_global = True
    #: Whether the norm is bit-identical to torch's where the coefficient is not folded.
    matches_torch: ClassVar[bool] = False

    def check_optimizer(self, optimizer: Optimizer) -> None:
        """Warn of an optimizer whose update does not depend on the norm of the gradient."""
        clips_nothing = getattr(self, 'max_norm', None) == math.inf
        name = _orthogonalizing(optimizer)
        if name and not clips_nothing:
            warnings.warn(
                f'clip_grad: {self.name} does not bound the update of {name}, which orthogonalizes '
                'its momentum: the update has the size that lr gives it, whatever the norm of the '
                'gradient. Clipping only weights this gradient against the earlier ones in the '
                'momentum, and where parameters stepped by another rule share the norm, it scales '
                'those by gradients that are not theirs. Leave the parameters of '
                f'{name} out of clipping (exclude=[...], or an optimizer of their own), and keep '
                "the log and nonfinite='skip' with max_norm=inf",
                stacklevel=2,
            )

    def norms(self, view: GradView) -> Tensor:
        """The norm of each gradient, (N,), of order :attr:`norm_type`."""
        return view.backend.norms(self.norm_type, exact=self.matches_torch and not view.folds)

    def measure(self, view: GradView) -> Measure:
        parts = self.norms(view)
        return Measure(combine(parts, self.norm_type, exact=not view.folds), parts)

    @abstractmethod
    def decide(self, norm: Tensor, finite: Finite) -> tuple[Tensor, Tensor | float]:
        """The coefficient (0-d) and the threshold, given the norm (0-d)."""

    def resolve(self, view: GradView, measure: Measure, finite: Finite) -> tuple[Tensor, Outcome]:
        coef, bound = _checked(self, self.decide(measure.norm, finite), measure.norm)
        return coef, Outcome(None, measure.norm * coef, bound, (coef < 1).to(coef.dtype), 1)

    def clip(self, view: GradView, measure: Measure, finite: Finite) -> Outcome:
        coef, outcome = self.resolve(view, measure, finite)
        return outcome._replace(coef=coef)

    # Optional: ``decision_kernel(self, device: torch.device) -> KernelCall | None``, a shortcut. It
    # names the Triton kernel that does in one launch what ``decide`` does, state included.


def _orthogonalizing(optimizer: Optimizer) -> str:
    """The class name if the optimizer, or one that it wraps, is Muon or of its kind; or ''."""
    wrapped = [value for value in vars(optimizer).values() if isinstance(value, Optimizer)]
    for each in (optimizer, *wrapped):
        if any('Muon' in cls.__name__ for cls in type(each).__mro__):
            return type(each).__name__
    return ''


class TensorClipper(CoefClipper):
    """A rule that scales each gradient tensor by a coefficient of its own."""

    def measure(self, view: GradView) -> Measure:
        parts = view.backend.norms(self.norm_type)
        return Measure(combine(parts, self.norm_type, exact=False), parts)

    @abstractmethod
    def decide(
        self, norms: Tensor, view: GradView, finite: Finite
    ) -> tuple[Tensor, Tensor | float]:
        """The coefficients (N,) and the thresholds (N,) or one for all, given the norms (N,)."""

    def resolve(self, view: GradView, measure: Measure, finite: Finite) -> tuple[Tensor, Outcome]:
        norms = _parts(measure)
        coefs, bounds = _checked(self, self.decide(norms, view, finite), norms)
        if isinstance(bounds, Tensor) and bounds.dim():
            bounds = combine(bounds, self.norm_type, exact=False)
        post = combine(norms * coefs, self.norm_type, exact=False)
        return coefs, Outcome(None, post, bounds, (coefs < 1).sum(), len(norms))

    def clip(self, view: GradView, measure: Measure, finite: Finite) -> Outcome:
        coefs, outcome = self.resolve(view, measure, finite)
        view.backend.scale(coefs)
        return outcome


class UnitClipper(Clipper):
    """A rule that scales each unit (:mod:`gclip_mm.clipping.gradients.units`) by its own factor."""

    def measure(self, view: GradView) -> Measure:
        limits = self.shortcut('unit_limits')
        norm, norms = view.backend.unit_norms(None if limits is None else limits())
        return Measure(norm, norms)

    @abstractmethod
    def decide(self, norms: Tensor, weights: Tensor, view: GradView) -> tuple[Tensor, Tensor]:
        """The coefficients and the bounds of the units, both (U,).

        Args:
            norms: (U,) norms of the units of the gradients.
            weights: (U,) norms of the same units of the weights.
            view: the gradients.
        """

    def clip(self, view: GradView, measure: Measure, finite: Finite) -> Outcome:
        norms = _parts(measure)
        decision = self.decide(norms, view.backend.unit_weights(), view)
        coefs, bounds = _checked(self, decision, norms, one_bound=False)
        view.backend.scale_units(coefs)
        return Outcome(None, *view.backend.unit_totals(norms * coefs, bounds, coefs < 1))

    # Optional: ``unit_limits(self) -> UnitLimits``, a shortcut. It describes ``decide`` by numbers,
    # so that a CPU kernel can scale while it measures.


class ElementClipper(Clipper):
    """A rule that changes the elements outside a range."""

    def measure(self, view: GradView) -> Measure:
        fixed = self.shortcut('fixed_range')
        norm, parts = view.backend.element_norms(None if fixed is None else fixed())
        return Measure(norm, parts)

    @abstractmethod
    def ranges(self, view: GradView, finite: Finite) -> Ranges:
        """The range of the elements of each gradient, and how elements outside it change."""

    def clip(self, view: GradView, measure: Measure, finite: Finite) -> Outcome:
        ranges = self.ranges(view, finite)
        fixed = self.shortcut('fixed_range')
        post, changed = view.backend.edit(ranges, is_clamp=fixed is not None)
        return Outcome(None, post, ranges.threshold, changed, max(view.elements, 1))

    # Optional: ``fixed_range(self) -> tuple[float | None, float | None]``, a shortcut. The range is
    # known before measuring and elements are clamped to it, so that a kernel can clamp and count
    # while it measures.


def _checked(rule: Clipper, decision: Any, norms: Tensor, one_bound: bool = True) -> Any:
    """What ``decide`` returned, if it fits the norms that it was given.

    Args:
        rule: the rule that decided.
        decision: what it returned.
        norms: 0-d, (N,) or (U,).
        one_bound: whether one number may stand for all bounds.

    Raises:
        TypeError: not a pair, or coefficients or bounds of another type or shape.
    """
    shape = norms.shape
    if isinstance(decision, tuple) and len(decision) == 2:
        coefs, bounds = decision
        fits = isinstance(coefs, Tensor) and coefs.shape == shape
        if isinstance(bounds, Tensor):
            if fits and (bounds.shape == shape or (one_bound and bounds.dim() == 0)):
                return decision
        elif fits and one_bound and bounds is not None:
            return decision
    found = decision if isinstance(decision, tuple) else (decision,)
    kinds = (
        f'a tensor of shape {tuple(item.shape)}' if isinstance(item, Tensor) else repr(item)
        for item in found
    )
    number = ' or one number' if one_bound else ''
    raise TypeError(
        f'{rule.name}.decide must return a pair: coefficients, a tensor of shape {tuple(shape)}, '
        f'and bounds, a tensor of that shape{number}. It returned {" and ".join(kinds)}'
    )


def _parts(measure: Measure) -> Tensor:
    assert measure.parts is not None  # measured by this kind of rule
    return measure.parts


__all__ = [
    'SHORTCUTS',
    'Clipper',
    'CoefClipper',
    'ElementClipper',
    'Finite',
    'GlobalClipper',
    'Measure',
    'Outcome',
    'Ranges',
    'TensorClipper',
    'UnitClipper',
    'UnitLimits',
    'Update',
]
