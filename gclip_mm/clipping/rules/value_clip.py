"""Clip by value."""

from __future__ import annotations

from ..base import Clipper, ElementClipper, Finite, Ranges
from ..checks import ClipConfigError, check_flag, check_number
from ..config.registry import CLIPPERS
from ..gradients.view import GradView
from .carry import Carry


@CLIPPERS.register_module(aliases=('value',))
class ValueClip(ElementClipper):
    """Clamp every element of every gradient into a range.

    ``clamp(g, -clip_value, clip_value)``, or ``clamp(g, min, max)`` for an asymmetric range.
    Bit-identical to ``torch.nn.utils.clip_grad_value_``. On a CPU with Numba it clamps while it
    measures (:mod:`gclip_mm.clipping.kernels.host_tensors`), so that a skipped step
    (``nonfinite='skip'``) may have clamped finite elements. With a monitor or another observer
    attached, a skipped step changes no element.

    Good for: small nets and box regression losses in which a few elements explode. Bad for: the
    direction of the update, which changes; models of many layers, because a threshold that suits
    one layer rarely suits the others.

    Args:
        clip_value: largest absolute value allowed, at least 0.
        min: lower end of the range; alone or with ``max``.
        max: upper end of the range; alone or with ``min``.
        carry: keep the clipped-off part and add it to the next step's gradient
            (:mod:`gclip_mm.clipping.rules.carry`).

    Raises:
        ClipConfigError: both forms or none given, a negative or NaN bound, ``min`` above ``max``;
            ``carry`` with a range that does not contain 0.

    Example:
        >>> optim_wrapper = dict(
        ...     type='GClipOptimWrapper',
        ...     optimizer=dict(type='SGD', lr=0.02, momentum=0.9),
        ...     clip_grad=dict(type='ValueClip', clip_value=0.1))
    """

    thresholds = ('clip_value', 'min', 'max')
    source = 'torch.nn.utils.clip_grad_value_'
    example = dict(clip_value=0.01)

    def __init__(
        self,
        clip_value: float | None = None,
        min: float | None = None,
        max: float | None = None,
        carry: bool = False,
    ) -> None:
        check_number('clip_value', clip_value, low=0, allow_none=True, allow_inf=True)
        check_number('min', min, allow_none=True)
        check_number('max', max, allow_none=True)
        if clip_value is None and min is None and max is None:
            raise ClipConfigError("clip_grad: ValueClip needs 'clip_value', or 'min' and/or 'max'")
        if clip_value is not None and (min is not None or max is not None):
            raise ClipConfigError(
                "clip_grad: ValueClip takes either 'clip_value' or 'min'/'max', not both"
            )
        if min is not None and max is not None and min > max:
            raise ClipConfigError(f'clip_grad: min must be at most max, got {min!r} > {max!r}')
        self.clip_value = clip_value
        self.min = min
        self.max = max
        check_flag('carry', carry)
        if carry and not self.never_increases:
            raise ClipConfigError(
                'clip_grad: carry needs a range that contains 0, or the carried part grows without '
                f'bound, got min={min!r}, max={max!r}'
            )
        self.carry = carry

    @property
    def never_increases(self) -> bool:
        """False for a range without 0, which moves elements away from 0."""
        return (self.min is None or self.min <= 0) and (self.max is None or self.max >= 0)

    def assembled(self) -> Clipper:
        return Carry(self) if self.carry else self

    def fixed_range(self) -> tuple[float | None, float | None]:
        """The range in force, lower and upper end."""
        if self.clip_value is not None:
            return -self.clip_value, self.clip_value
        return self.min, self.max

    def ranges(self, view: GradView, finite: Finite) -> Ranges:
        low, high = self.fixed_range()
        return Ranges(low, high, float(max(abs(end) for end in (low, high) if end is not None)))
