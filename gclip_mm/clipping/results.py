"""What the engine, a rule and a view tell each other in a step."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Finite(NamedTuple):
    """Whether the gradients of a step are finite, and where that is known.

    Attributes:
        known: True or False if known on the host; None if known on the device only.
        flag: 0-d bool tensor on the device if ``known`` is None, else None.
    """

    known: bool | None
    flag: Tensor | None = None

    @property
    def learns(self) -> bool:
        """Whether a rule may update its state, masked by ``flag`` if that is not None."""
        return self.known is not False


class Measure(NamedTuple):
    """What a rule read from the gradients, without the loss scale.

    Attributes:
        norm: 0-d, the norm of all gradients of the view, of order ``Clipper.norm_type``.
        parts: the norms of the N tensors, (N,), or of the U units, (U,); None if not measured.
    """

    norm: Tensor
    parts: Tensor | None = None

    def unscaled(self, scale: Tensor) -> Measure:
        """The measure of gradients that carry the loss scale ``scale`` (0-d)."""
        scale = scale.to(self.norm.device)
        return Measure(self.norm / scale, None if self.parts is None else self.parts / scale)


class Outcome(NamedTuple):
    """What a rule did to the gradients of a view.

    Attributes:
        coef: 0-d coefficient that the engine still has to apply to every gradient of the view; None
            if the rule changed the gradients in place.
        post: 0-d norm after clipping, of order ``Clipper.norm_type``.
        threshold: the bound in force, 0-d tensor or number. Rules with a bound per tensor or unit
            give the norm of all bounds, the largest norm that can pass.
        clipped: how many parts were clipped: 0-d tensor or number.
        parts: how many parts there are: tensors, units or elements; 1 for a global rule.
    """

    coef: Tensor | None
    post: Tensor
    threshold: Tensor | float
    clipped: Tensor | float
    parts: int


class Update(NamedTuple):
    """What a rule did, after the step, to the update of a view with U units.

    Attributes:
        coefs: (U,) the share of its movement that each unit kept.
        moved: 0-d norm of the movement of all parameters.
        kept: 0-d norm of what was kept of it.
        threshold: 0-d norm of all bounds, the largest movement that can pass.
        clipped: 0-d number of units that were shortened.
        parts: number of units.
    """

    coefs: Tensor
    moved: Tensor
    kept: Tensor
    threshold: Tensor
    clipped: Tensor
    parts: int
