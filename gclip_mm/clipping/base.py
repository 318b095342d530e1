"""The contract of a clipping rule, and the two kinds of rule that only decide a coefficient.

A rule is told of one step in two calls. ``measure`` reads the gradients, so that the engine can
tell a non-finite step before any rule has learnt from it; it changes nothing, unless the view says
that nobody will look at the gradients of such a step (``GradView.is_disposable``). ``clip``
decides, updates the rule's state, and either scales the gradients itself or hands back one
coefficient for all of them, which the engine applies or folds into a fused optimizer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from .gradients.norms import combine, host
from .kernels import KernelCall, mark_written, whole_tensors

if TYPE_CHECKING:
    from .gradients.rows import RowNorms
    from .gradients.view import GradView
    from .kernels import HostTensors, MultiTensor, UnitKernels
    from .kernels.host_tensors import Scan


class Measure(NamedTuple):
    """What a rule read from the gradients before deciding.

    Attributes:
        norm: 0-d, the norm of all gradients of the view, of order ``Clipper.norm_type``.
        parts: (N,) the norms of the rule's own parts (tensors or units), or None.
        rows: the norms of the rows of large gradients, if the rule has use for them, or None.
        scan: what a pass over host memory has found outside the rule's range, or None.
        kernels: what has measured, if it can scale as well, or None.
    """

    norm: Tensor
    parts: Tensor | None = None
    rows: RowNorms | None = None
    scan: Scan | None = None
    kernels: MultiTensor | HostTensors | UnitKernels | None = None


class Outcome(NamedTuple):
    """What a rule did to the gradients of a view.

    Attributes:
        coef: 0-d coefficient that still has to be applied to every gradient of the view, or None
            when the rule has changed the gradients itself.
        post: 0-d norm after clipping, of order ``Clipper.norm_type``.
        threshold: the bound in force: 0-d tensor or number. Rules with a bound per tensor or unit
            give the norm of all their bounds together, the largest norm that they would let pass.
        clipped: how many of the units were clipped: 0-d tensor or number.
        units: how many units there are.
    """

    coef: Tensor | None
    post: Tensor
    threshold: Tensor | float
    clipped: Tensor | float
    units: int


class Clipper(ABC):
    """A clipping rule. Subclasses are registered in ``CLIPPERS``; one file each.

    The constructor's keyword arguments are the rule's config keys; it raises
    :class:`~gclip_mm.clipping.checks.ClipConfigError` for a value that makes no sense.
    """

    #: Order of the norm that the rule reports.
    norm_type: float = 2.0
    #: Config keys that a schedule may drive; each is an attribute that holds a number.
    thresholds: ClassVar[tuple[str, ...]] = ()
    #: Whether all gradients get one coefficient, which a fused optimizer can apply by itself.
    is_global: ClassVar[bool] = False
    #: Promise, checked by the contract tests: the norm never grows.
    never_increases: ClassVar[bool] = True
    #: Paper or source, for the docs.
    source: ClassVar[str] = ''
    #: Config keys that make a working rule, beside ``type``: what docs, tests and benchmarks build.
    example: ClassVar[dict[str, Any]] = {}
    #: What drives the thresholds of rules within this one (:class:`ThresholdDriver`).
    drivers: Sequence[Any] = ()

    def check_optimizer(self, optimizer: Optimizer) -> None:  # noqa: B027 (most take any)
        """Called once, before the rule is attached.

        Raises:
            ClipConfigError: the rule makes no sense with this optimizer.
        """

    @abstractmethod
    def measure(self, view: GradView) -> Measure:
        """Read the gradients; change nothing, unless the view says that it may."""

    @abstractmethod
    def clip(self, view: GradView, measure: Measure, ok: Tensor | None) -> Outcome:
        """Decide and apply.

        Args:
            view: the gradients, and the parameters they belong to.
            measure: what :meth:`measure` returned in this step, of these gradients.
            ok: None when every gradient is known to be finite. Otherwise a 0-d bool tensor: state
                must be left as it was where it is False. Unless it lies in host memory, the host
                has not read it and must not.
        """

    def decision_kernel(self, device: torch.device) -> KernelCall | None:
        """A kernel that does in one launch what :meth:`clip` does; None: there is none.

        Asked only of a rule with one coefficient that defines it itself, and in a step that it may
        learn from if the gradients are finite, which the kernel has to see to.

        Args:
            device: where the gradients are, and whatever the call refers to has to be.
        """
        return None

    # -- state -----------------------------------------------------------------------------------
    #: The named tuple that holds the rule's state, documented there; None: the rule keeps none.
    #: Fields with an entry for each parameter of the route are named in its ``fresh``, a dict, with
    #: what a parameter begins with.
    State: ClassVar[type | None] = None
    #: Whether the state holds an element for each weight, laid out like the gradients.
    elementwise_state: bool = False
    #: The state itself; None before the first step. Fields are tensors, or lists with one tensor
    #: (or None) for each parameter of the route.
    state: Any = None

    def follow(self, slots: list[int | None]) -> None:
        """Other parameters are governed from now on: whoever stays keeps its own state.

        Args:
            slots: for each parameter of the route its place among those before, or None if it has
                come in anew.
        """
        if self.state is not None:
            begins = getattr(self.State, 'fresh', {})
            moved = {
                key: _moved(getattr(self.state, key), slots, value) for key, value in begins.items()
            }
            self.state = self.state._replace(**moved)

    def state_dict(self) -> dict[str, Any]:
        """A copy of the state: {} where there is none."""
        return {} if self.state is None else _copy(self.state._asdict())

    def reset(self) -> None:
        """Forget the state: the rule starts afresh with the next step."""
        self.state = None

    def load_state_dict(self, state: dict[str, Any], params: list[Tensor]) -> None:
        """Restore what :meth:`state_dict` returned.

        Args:
            state: the state; {} starts afresh.
            params: the parameters of the route; the state goes to their devices.

        Raises:
            ValueError: the state is not one of this rule.
        """
        if not state:
            self.state = None
            return
        fields = () if self.State is None else self.State._fields
        if set(state) != set(fields):
            raise ValueError(
                f'{type(self).__name__} keeps the state {list(fields)}, got {sorted(state)}'
            )
        self.state = self.State(**{key: _place(value, params) for key, value in state.items()})


def _copy(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value


def _moved(value: Any, slots: list[int | None], begin: Any) -> Any:
    """A field with one entry a parameter, for other parameters; see :meth:`Clipper.follow`."""
    if isinstance(value, list):
        return [begin if slot is None else value[slot] for slot in slots]
    moved = value.new_full((len(slots), *value.shape[1:]), begin)
    places = [i for i, slot in enumerate(slots) if slot is not None]
    moved[places] = value[[slots[i] for i in places]]
    return moved


def _place(value: Any, params: list[Tensor]) -> Any:
    """A copy of a field of the state on the parameters' devices."""
    if isinstance(value, Tensor):
        return value.detach().clone().to(params[0].device)
    if not isinstance(value, list):
        return value
    return [
        item if item is None else item.detach().clone().to(param.device)
        for item, param in zip(value, params, strict=True)
    ]


class GlobalClipper(Clipper):
    """A rule that scales all gradients by one coefficient, computed from their total norm."""

    is_global = True

    def norms(self, view: GradView) -> Tensor:
        """The norm of each gradient, (N,), of order :attr:`norm_type`."""
        return norm_of_each(view, self.norm_type)

    def measure(self, view: GradView) -> Measure:
        parts = self.norms(view)
        return Measure(combine(parts, self.norm_type, exact=not view.folds), parts)

    @abstractmethod
    def decide(self, norm: Tensor, ok: Tensor | None) -> tuple[Tensor, Tensor | float]:
        """The coefficient (0-d) and the threshold, given the norm (0-d)."""

    def clip(self, view: GradView, measure: Measure, ok: Tensor | None) -> Outcome:
        coef, threshold = self.decide(measure.norm, ok)
        return Outcome(coef, measure.norm * coef, threshold, (coef < 1).to(coef.dtype), 1)


class TensorClipper(Clipper):
    """A rule that scales each gradient tensor by a coefficient of its own."""

    def measure(self, view: GradView) -> Measure:
        kernels = whole_tensors(view, p=self.norm_type)
        parts = (kernels or view).norms(self.norm_type)
        norm = combine(parts, self.norm_type, exact=False)
        return Measure(norm, parts, kernels=kernels)

    @abstractmethod
    def decide(
        self, norms: Tensor, view: GradView, ok: Tensor | None
    ) -> tuple[Tensor, Tensor | float]:
        """The coefficients (N,) and the thresholds (N,) or one number, given the norms (N,)."""

    def clip(self, view: GradView, measure: Measure, ok: Tensor | None) -> Outcome:
        norms, kernels = measure.parts, measure.kernels
        coefs, bounds = self.decide(norms, view, ok)
        if kernels is not None and kernels.has(view.grads):
            kernels.scale(coefs)
            mark_written(view.grads)
        else:
            scale_each(view.grads, coefs)
        if isinstance(bounds, Tensor):
            bounds = combine(bounds, self.norm_type, exact=False)
        post = combine(norms * coefs, self.norm_type, exact=False)
        return Outcome(None, post, bounds, (coefs < 1).sum(), len(view.grads))


def norm_of_each(view: GradView, p: float, exact: bool = False) -> Tensor:
    """:meth:`GradView.norms`, in one launch or one pass where there is a kernel for it."""
    kernels = whole_tensors(view, exact, p)
    return view.norms(p, exact) if kernels is None else kernels.norms(p)


def scale_each(grads: list[Tensor], coefs: Tensor) -> None:
    """Multiply each gradient in place by its coefficient; coefs has shape (N,).

    On the CPU, where the coefficients can be looked at for free, a gradient that keeps its size is
    not touched.
    """
    values = host(coefs)
    if values is not None:
        cut = (values != 1).nonzero()[0].tolist()
        if cut:
            torch._foreach_mul_([grads[i] for i in cut], values[cut].tolist())
    elif all(g.device == coefs.device for g in grads):
        torch._foreach_mul_(grads, list(coefs.unbind()))
    else:
        torch._foreach_mul_(grads, [c.to(g.device) for c, g in zip(coefs, grads, strict=True)])


def scale_all(grads: list[Tensor], coef: Tensor) -> None:
    """Multiply all gradients in place by one coefficient (0-d)."""
    if all(grad.device == coef.device for grad in grads):
        torch._foreach_mul_(grads, coef)
    else:
        for grad in grads:
            grad.mul_(coef.to(grad.device))
