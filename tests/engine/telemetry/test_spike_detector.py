"""The detector's verdicts compared with the documented formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gclip_mm.clipping import ClipConfigError
from gclip_mm.engine.telemetry.spike_detector import SpikeDetector

NAN = math.nan


def feed(detector, norms):
    return [detector(float(norm), NAN, not math.isfinite(norm)) for norm in norms]


def reference(norms, z, ratio, window, history):
    """The documented threshold before each norm; None while there are too few."""
    thresholds = []
    for i in range(len(norms)):
        past = [n for n in norms[:i] if np.isfinite(n) and n > 0][-window:]
        if len(past) < history:
            thresholds.append(None)
            continue
        logs = np.log(np.array(past))
        mad = np.median(np.abs(logs - np.median(logs)))
        thresholds.append(float(np.exp(np.median(logs)) * max(ratio, np.exp(z * 1.4826 * mad))))
    return thresholds


def test_verdicts_match_the_formula():
    generator = np.random.default_rng(0)
    norms = generator.lognormal(2.0, 0.7, 300)
    norms[[40, 111, 200]] = [5e4, np.nan, np.inf]
    norms[120] = 0.0
    detector = SpikeDetector(z_threshold=3.0, min_ratio=2.0, window=50, min_history=10)
    verdicts = feed(detector, norms)
    expected = reference(norms, 3.0, 2.0, 50, 10)
    causes = []
    for norm, threshold, verdict in zip(norms, expected, verdicts, strict=True):
        if not np.isfinite(norm):
            assert verdict.cause == 'nonfinite'
        elif threshold is not None and norm > threshold:
            assert verdict.cause == 'norm'
            assert verdict.threshold == pytest.approx(threshold, rel=1e-12)
        else:
            assert verdict is None
        causes.append(verdict.cause if verdict else None)
    assert causes[40] == 'norm' and causes[111] == causes[200] == 'nonfinite'


@pytest.mark.parametrize('sigma', [0.01, 0.3, 1.0])
def test_no_false_alarm_at_any_spread(sigma):
    norms = np.random.default_rng(1).lognormal(0.0, sigma, 3000)
    assert not any(feed(SpikeDetector(), norms))
    norms[2000] *= np.exp(10 * max(sigma, 0.3))
    verdicts = feed(SpikeDetector(), norms)
    assert verdicts[2000].cause == 'norm' and sum(v is not None for v in verdicts) == 1


def test_permanently_higher_level_stops_being_a_spike():
    norms = [1.0] * 100 + [50.0] * 100
    verdicts = feed(SpikeDetector(window=40), norms)
    assert all(verdicts[100:115]) and not any(verdicts[130:])


def test_constant_norms_and_zero_norms_are_no_spikes():
    assert not any(feed(SpikeDetector(), [2.0] * 50 + [5.9] + [0.0] * 20))
    assert feed(SpikeDetector(), [2.0] * 50 + [6.1])[-1].cause == 'norm'


def test_small_coefficient_is_a_spike_with_min_coef():
    detector = SpikeDetector(min_coef=0.1)
    assert detector(1.0, 0.2, False) is None
    assert detector(1.0, 0.05, False).cause == 'clip_coef'
    assert detector(1.0, NAN, False) is None


@given(st.lists(st.floats(0, 1e300), max_size=60), st.floats(1e-300, 1e300))
def test_any_norm_gets_a_verdict(norms, last):
    detector = SpikeDetector(window=20, min_history=2)
    feed(detector, norms)
    verdict = detector(last, 1.0, False)
    assert verdict is None or verdict.cause == 'norm'


@pytest.mark.parametrize(
    ('key', 'value'),
    [('z_threshold', 0), ('min_ratio', 0.5), ('window', 1), ('min_history', 101), ('min_coef', 2)],
)
def test_value_out_of_range_is_refused(key, value):
    with pytest.raises(ClipConfigError, match=f'SpikeDetector: {key}'):
        SpikeDetector(**{key: value})
