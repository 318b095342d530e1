"""Spike detection by a robust z-score of the logarithms of the recent gradient norms."""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple

import numpy as np

from ...clipping.checks import check_number

#: Ratio of standard deviation to median absolute deviation of a normal distribution.
_MAD_TO_STD = 1.4826


class Verdict(NamedTuple):
    """Why a step counts as a spike.

    Attributes:
        cause: ``'nonfinite'``, ``'norm'``, ``'clip_coef'`` or ``'loss'``.
        median: median of the recent norms (for ``'loss'``, losses); None while there are too few.
        threshold: the norm or loss above which a step is a spike; None while there are too few.
        term: for ``'loss'``, the term of the loss.
    """

    cause: str
    median: float | None
    threshold: float | None
    term: str | None = None


class SpikeDetector:
    """Decides whether a step is a spike compared with the steps before it.

    Norms spread over decades with a heavy tail. The detector therefore compares their logarithms,
    by median and median absolute deviation (MAD), which are robust to spikes in the window. A step
    is a spike if its norm is above ::

        median * max(min_ratio, exp(z_threshold * 1.4826 * MAD(log norms)))

    of the last ``window`` finite norms before it, if it is not finite, or if its clipping
    coefficient is below ``min_coef``. Spikes enter the window as well: a permanently higher level
    is no longer a spike once it fills half of the window.

    Args:
        z_threshold: standard deviations, above 0.
        min_ratio: smallest multiple of the median that can be a spike, at least 1; avoids reports
            of small deviations where the norms hardly vary.
        window: number of norms in the window, at least 2.
        min_history: norms needed before a norm can be a spike, from 2 to ``window``.
        min_coef: coefficient below which a clipped step is a spike, from 0 to 1; None: no step is
            a spike for its coefficient.
        where: begins the message of an error.

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
        """Add a norm to the window without a verdict; ignores zero and non-finite norms."""
        if math.isfinite(norm) and norm > 0:
            self._logs.append(math.log(norm))

    def __call__(self, norm: float, coef: float, nonfinite: bool) -> Verdict | None:
        """Judge a step and add its norm to the window.

        Args:
            norm: gradient norm before clipping.
            coef: clipping coefficient; NaN if unknown.
            nonfinite: whether the step had a non-finite gradient.

        Returns:
            Verdict or None: None if the step is not a spike.
        """
        median = threshold = None
        if len(self._logs) >= self.min_history:
            logs = np.array(self._logs)
            middle = np.median(logs)
            spread = _MAD_TO_STD * float(np.median(np.abs(logs - middle)))
            median = float(np.exp(middle))
            # At most 700, because exp overflows above.
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
