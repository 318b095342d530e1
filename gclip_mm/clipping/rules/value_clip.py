"""Clip by value."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..base import Clipper, Measure, Outcome
from ..checks import ClipConfigError, check_flag, check_number
from ..config.registry import CLIPPERS
from ..gradients.norms import combine, host
from ..gradients.outliers import OutlierEdit, measure_with_rows
from ..kernels import HostTensors, MultiTensor, mark_written, whole_tensors
from ..small_state import learns
from .carry import CarryState, carried, drop_what_passed


@CLIPPERS.register_module(aliases=('value',))
class ValueClip(Clipper):
    """Clamp every element of every gradient into a range.

    ``clamp(g, -clip_value, clip_value)``, or ``clamp(g, min, max)`` for a range that is not
    symmetric. Same bits as ``torch.nn.utils.clip_grad_value_``. On a CPU with Numba it clamps while
    it measures (:mod:`gclip_mm.clipping.kernels.host_tensors`), so that in a step that is left out
    (``nonfinite='skip'``) finite elements of the gradient may be clamped already; the others stay
    as they are, and with a monitor or another observer attached all do.

    Good for: small nets and box regression losses in which a few elements explode. Bad for: the
    direction of the update, which changes; a threshold that suits one layer rarely suits the next.

    Args:
        clip_value: largest absolute value allowed, at least 0.
        min: lower end of the range; only together with, or instead of, ``max``.
        max: upper end of the range.
        carry: keep what is cut off and add it to the next step's gradient
            (:mod:`gclip_mm.clipping.rules.carry`).

    Raises:
        ClipConfigError: both forms or none given, a negative or NaN bound, ``min`` above ``max``;
            ``carry`` with a range that 0 is not in.

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
        # A range without 0 in it moves elements away from 0.
        self.never_increases = (min is None or min <= 0) and (max is None or max >= 0)
        check_flag('carry', carry)
        if carry and not self.never_increases:
            raise ClipConfigError(
                'clip_grad: carry needs a range with 0 in it, or what is carried grows for ever, '
                f'got min={min!r}, max={max!r}'
            )
        self.carry = carry
        self.elementwise_state = carry
        if carry:
            self.State = CarryState
            # A gradient that comes with what was kept of earlier ones may be larger than by itself.
            self.never_increases = False

    @property
    def bounds(self) -> tuple[float | None, float | None]:
        """The range in force, lower and upper end."""
        if self.clip_value is not None:
            return -self.clip_value, self.clip_value
        return self.min, self.max

    def measure(self, view) -> Measure:
        kernels = None if self.carry else whole_tensors(view)
        if kernels is None:
            return measure_with_rows(view)
        if isinstance(kernels, HostTensors):
            # A class that has inherited this may decide otherwise.
            early = view.is_disposable and type(self).clip is ValueClip.clip
            scan = kernels.scan(*self.bounds, write=early)
            if scan.written:
                mark_written(view.grads)
            return Measure(scan.totals[0], scan.norms, scan=scan, kernels=kernels)
        norms = kernels.norms()
        return Measure(combine(norms), norms, kernels=kernels)

    def clip(self, view, measure: Measure, ok: Tensor | None) -> Outcome:
        low, high = self.bounds
        threshold = float(max(abs(end) for end in (low, high) if end is not None))
        elements = max(view.elements, 1)
        scan, kernels = measure.scan, measure.kernels
        # Where it has written, nobody has come between.
        if kernels is not None and not (scan and scan.written) and not kernels.has(view.grads):
            measure = self.measure(view)
            scan, kernels = measure.scan, measure.kernels
        # What a scan makes of elements that are not finite is not what clamping makes of them.
        if scan is not None and math.isfinite(host(measure.norm)):
            if not scan.written:
                kernels.write(scan)
                mark_written(view.grads)
            return Outcome(None, scan.totals[1], threshold, scan.changed, elements)
        if isinstance(kernels, MultiTensor):
            counts, posts = kernels.clamp(low, high)
            mark_written(view.grads)
            return Outcome(None, combine(posts), threshold, counts.sum(), elements)
        parts, clipped = self._edit(view, measure, ok)
        return Outcome(None, combine(parts), threshold, clipped, elements)

    def _edit(self, view, measure: Measure, ok: Tensor | None) -> tuple[Tensor, Tensor]:
        """The ordinary path: the norms (N,) after clipping, and how many elements were clipped."""
        carries = self.carry and learns(ok)
        norms, rows = measure.parts, measure.rows
        if carries:
            self.state = self.state or CarryState([None] * view.size)
            sums = carried(self.state, view, ok)
            for total, grad in zip(sums, view.grads, strict=True):
                grad.copy_(total)
            norms, rows = view.norms(), None
        edit = OutlierEdit(view.grads, norms, rows)
        edit.apply_to_all(*self.bounds, self._clamp)
        if carries:
            drop_what_passed(sums, view, ok)
        parts = edit.norms() if view.sharding is None else view.norms()
        return parts, view.sum(edit.counts).sum()

    def _clamp(self, values: Tensor, out: Tensor) -> None:
        torch.clamp(values, *self.bounds, out=out)
