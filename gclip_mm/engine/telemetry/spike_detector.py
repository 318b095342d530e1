"""When a gradient norm is a spike: a robust z-score on the logarithms of the recent norms."""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple

import numpy as np

from ...clipping.checks import check_number

#: Makes the median absolute deviation of a normal distribution its standard deviation.
_MAD_TO_STD = 1.4826


class Verdict(NamedTuple):
    """Why a step counts as a spike.

    Attributes:
        cause: ``'nonfinite'``, ``'norm'``, ``'clip_coef'`` or ``'loss'``.
        median: median of the recent norms (for ``'loss'``, losses); None while there are too few.
        threshold: from where a step was a spike; None while there are too few.
        term: for ``'loss'``, which term of it.
    """

    cause: str
    median: float | None
    threshold: float | None
    term: str | None = None


class SpikeDetector:
    """Tells spikes from the steps around them.

    Norms are spread over decades and their distribution has a heavy tail, so it is their logarithms
    that are compared, by median and median absolute deviation (MAD), which a spike in the window
    moves but little. A step is a spike if its norm is above ::

        median * max(min_ratio, exp(z_threshold * 1.4826 * MAD(log norms)))

    of the last ``window`` finite norms before it, or if it is not finite, or if its clipping
    coefficient is below ``min_coef``. Spikes enter the window as well: a level that is higher for
    good stops being a spike when it fills half of it.

    Args:
        z_threshold: standard deviations, above 0.
        min_ratio: smallest multiple of the median that can be a spike, at least 1; keeps very even
            stretches from reporting trifles.
        window: norms remembered, at least 2.
        min_history: norms needed before the first verdict on a norm, from 2 to ``window``.
        min_coef: coefficient below which a clipped step is a spike, from 0 to 1; None: none is.

    Raises:
        ClipConfigError: a value out of range.
    """

    def __init__(
        self,
        z_threshold: float = 6.0,
        min_ratio: float = 3.0,
        window: int = 100,
        min_history: int = 20,
        min_coef: float | None = None,
        where: str = 'SpikeDetector',
    ) -> None:
        check_number('z_threshold', z_threshold, low=0, open_low=True, where=where)
        check_number('min_ratio', min_ratio, low=1, where=where)
        check_number('window', window, low=2, integer=True, where=where)
        check_number('min_history', min_history, low=2, high=window, integer=True, where=where)
        check_number('min_coef', min_coef, low=0, high=1, allow_none=True, where=where)
        self.z_threshold = z_threshold
        self.min_ratio = min_ratio
        self.min_history = min_history
        self.min_coef = min_coef
        self._logs: deque[float] = deque(maxlen=window)

    def remember(self, norm: float) -> None:
        """Take a norm into the window without judging it."""
        if math.isfinite(norm) and norm > 0:
            self._logs.append(math.log(norm))

    def __call__(self, norm: float, coef: float, nonfinite: bool) -> Verdict | None:
        """Judge a step and take it into the window; None: no spike.

        Args:
            norm: gradient norm before clipping.
            coef: clipping coefficient; NaN where it is not known.
            nonfinite: whether the step had a non-finite gradient.
        """
        median = threshold = None
        if len(self._logs) >= self.min_history:
            middle = np.median(self._logs)
            spread = _MAD_TO_STD * np.median(np.abs(np.array(self._logs) - middle))
            median = float(np.exp(middle))
            # At most e^700: beyond, a float has no number for it.
            excess = min(max(math.log(self.min_ratio), self.z_threshold * spread), 700.0)
            threshold = median * math.exp(excess)
        self.remember(norm)
        if nonfinite or not math.isfinite(norm):
            return Verdict('nonfinite', median, threshold)
        if threshold is not None and norm > threshold:
            return Verdict('norm', median, threshold)
        if self.min_coef is not None and coef < self.min_coef:
            return Verdict('clip_coef', median, threshold)
        return None
