"""Every rule against its paper's formula in float64 NumPy, over a stream of difficult gradients.

The classes are written from the papers, not from the package, as loops over plain arrays. Each
takes the gradients of a step and returns the clipped gradients and the threshold. They never see
nonfinite steps.
"""

import functools
import math

import numpy as np
import pytest
import torch

from tests.clipping.cases import DeviceRunner, Runner

SHAPES = [(4, 3), (5,), (2, 3, 2), (), (3, 2)]
STEPS = 300


@functools.cache
def stream():
    """Gradients of 300 steps: spikes of all tensors, one tensor, one element; zeros; NaN and inf.

    Tensor 3 gets its first gradient late; tensor 1 has no gradient in some steps.
    """
    rng = np.random.RandomState(0)
    steps = []
    scales = np.array([1.0, 0.1, 3.0, 0.5, 1e-3])
    for t in range(STEPS):
        scales = scales * np.exp(0.05 * rng.randn(5))
        grads = [(s * rng.standard_normal(shape)) for s, shape in zip(scales, SHAPES, strict=True)]
        grads = [np.asarray(g, dtype=np.float32) for g in grads]
        if t % 17 == 16:
            grads = [g * np.float32(rng.uniform(3, 40)) for g in grads]
        if t % 13 == 12:
            grads[t % 5] = grads[t % 5] * np.float32(50)
        if t % 11 == 10:
            i = (0, 1, 2, 4)[t % 4]
            grads[i].reshape(-1)[t % grads[i].size] *= 1000
        if t in (6, 140, 141):
            grads = [np.zeros_like(g) for g in grads]
        if t in (3, 9, 150, 151, 152):
            grads[t % 5] = np.zeros_like(grads[t % 5])
        if t in (5, 60, 62, 202, 299):
            grads[t % 5].reshape(-1)[:1] = np.nan if t % 2 else np.inf
        if t < 40:
            grads[3] = None
        if t % 7 == 5:
            grads[1] = None
        steps.append(grads)
    return steps


def total(grads, p=2.0):
    flat = np.concatenate([g.reshape(-1) for g in grads if g is not None])
    return np.linalg.norm(flat, p)


def each(grads, function):
    return [None if g is None else function(i, g) for i, g in enumerate(grads)]


def bounds_norm(bounds, p=2.0):
    return np.linalg.norm(np.array(bounds), p)


class Value:
    def __init__(self, low, high):
        self.low, self.high = low, high

    def __call__(self, grads):
        return each(grads, lambda _, g: np.clip(g, self.low, self.high)), max(-self.low, self.high)


class Norm:
    def __init__(self, max_norm, p=2.0, min_norm=None):
        self.max_norm, self.p, self.min_norm = max_norm, p, min_norm

    def __call__(self, grads):
        n = total(grads, self.p)
        scale = min(1.0, self.max_norm / (n + 1e-6))
        if self.min_norm is not None and 0 < n < self.min_norm:
            scale = self.min_norm / n
        return each(grads, lambda _, g: g * scale), self.max_norm


class ParamNorm:
    def __init__(self, max_norm, p=2.0):
        self.max_norm, self.p = max_norm, p

    def __call__(self, grads):
        def clip(_, g):
            return g * min(1.0, self.max_norm / (np.linalg.norm(g.reshape(-1), self.p) + 1e-6))

        live = sum(g is not None for g in grads)
        return each(grads, clip), bounds_norm([self.max_norm] * live, self.p)


class AGC:
    def __init__(self, factor, eps):
        self.factor, self.eps = factor, eps

    def __call__(self, grads):
        limits = []

        def clip(_, g):
            # All weights are 1. A unit is a slice of the first axis, or a whole vector.
            rows = g.reshape(g.shape[0], -1) if g.ndim > 1 else g.reshape(1, -1)
            limit = self.factor * max(math.sqrt(rows.shape[1]), self.eps)
            limits.extend([limit] * len(rows))
            out = [r * limit / max(np.linalg.norm(r), 1e-6) for r in rows]
            out = [o if np.linalg.norm(r) > limit else r for o, r in zip(out, rows, strict=True)]
            return np.stack(out).reshape(g.shape)

        return each(grads, clip), bounds_norm(limits)


class AutoClip:
    def __init__(self, percentile, window):
        self.percentile, self.window, self.history = percentile, window, []

    def __call__(self, grads):
        n = total(grads)
        self.history.append(n)
        threshold = np.percentile(self.history[-self.window :], self.percentile)
        return each(grads, lambda _, g: g * min(1.0, threshold / n if n else 1.0)), threshold


class ZClip:
    def __init__(self, alpha, z, warmup, mode, max_norm):
        self.alpha, self.z, self.warmup, self.mode = alpha, z, warmup, mode
        self.max_norm = math.inf if max_norm is None else max_norm
        self.norms, self.mean, self.var = [], None, None
        self.spikes = 0

    def __call__(self, grads):
        n = total(grads)
        if len(self.norms) < self.warmup:
            self.norms.append(n)
            if len(self.norms) == self.warmup:
                self.mean, self.var = np.mean(self.norms), np.var(self.norms)
            return self._apply(grads, n, self.max_norm)
        std = math.sqrt(self.var)
        score = (n - self.mean) / std
        threshold = self.mean + self.z * std
        kept = n
        if score > self.z:
            self.spikes += 1
            threshold = kept = {
                'reciprocal': self.mean + self.z**2 / score * std,
                'mean': self.mean,
                'percentile': self.mean + self.z * std,
            }[self.mode]
        self.mean = self.alpha * self.mean + (1 - self.alpha) * kept
        self.var = self.alpha * self.var + (1 - self.alpha) * (kept - self.mean) ** 2
        return self._apply(grads, n, min(threshold, self.max_norm))

    def _apply(self, grads, n, threshold):
        scale = threshold / n if n > threshold else 1.0
        return each(grads, lambda _, g: g * scale), threshold


class AdaGC:
    def __init__(self, rel, beta, warmup, max_norm):
        self.rel, self.beta, self.warmup, self.max_norm = rel, beta, warmup, max_norm
        self.gamma, self.steps = {}, {}

    def __call__(self, grads):
        n = total(grads)
        bounds = []

        def clip(i, g):
            own = np.linalg.norm(g)
            if self.steps.get(i, 0) < self.warmup:
                scale = min(1.0, self.max_norm / n) if n else 1.0
                live = sum(g is not None for g in grads)
                bounds.append(self.max_norm * (own / n if n else live**-0.5))
                if own > 0:
                    self.gamma[i] = min(self.gamma.get(i, math.inf), scale * own)
                    self.steps[i] = self.steps.get(i, 0) + 1
            else:
                scale = min(1.0, self.rel * self.gamma[i] / own) if own else 1.0
                bounds.append(self.rel * self.gamma[i])
                if own > 0 or n == 0:
                    self.gamma[i] = self.beta * self.gamma[i] + (1 - self.beta) * scale * own
            return g * scale

        return each(grads, clip), bounds_norm(bounds)


class Spike:
    def __init__(self, theta, beta, grace):
        self.theta, self.beta, self.grace = theta, beta, grace
        self.v, self.steps = {}, {}
        self.hits = 0

    def __call__(self, grads):
        bound = []

        def clip(i, g):
            v = self.v.get(i, np.zeros_like(g))
            t = self.steps.get(i, 0)
            bound.append(self.theta * v.sum() if t >= self.grace else math.inf)
            if t >= self.grace:
                spikes = (g * g > self.theta * v) & (v > 0)
                self.hits += spikes.sum()
                g = np.where(spikes, np.sign(g) * np.sqrt(self.theta * v), g)
            self.v[i] = self.beta * v + (1 - self.beta) * g * g
            self.steps[i] = t + 1
            return g

        return each(grads, clip), math.sqrt(sum(bound))


class AdaClip:
    def __init__(self, beta):
        self.beta, self.peak, self.steps = beta, {}, {}

    def __call__(self, grads):
        bounds = []

        def clip(i, g):
            top = np.abs(g).max()
            self.peak[i] = self.beta * self.peak.get(i, 0.0) + (1 - self.beta) * top
            self.steps[i] = self.steps.get(i, 0) + 1
            bound = self.peak[i] / (1 - self.beta ** self.steps[i])
            bounds.append(bound)
            # The bound of the first step equals its largest element up to rounding.
            return np.where(np.abs(g) > bound * (1 + 1e-12), g / max(top, 1e-300) * bound, g)

        return each(grads, clip), max(bounds)


class Stabilizer:
    def __init__(self, gamma1, gamma2):
        self.gamma1, self.gamma2 = gamma1, gamma2
        self.m, self.v, self.steps = {}, {}, {}

    def __call__(self, grads):
        targets = []

        def clip(i, g):
            n = np.linalg.norm(g)
            t = self.steps[i] = self.steps.get(i, 0) + 1
            self.m[i] = self.gamma1 * self.m.get(i, 0.0) + (1 - self.gamma1) * n
            self.v[i] = self.gamma2 * self.v.get(i, 0.0) + (1 - self.gamma2) * n * n
            v = math.sqrt(self.v[i] / (1 - self.gamma2**t))
            targets.append(self.m[i] / (1 - self.gamma1**t) / v if v else 0.0)
            return g / n * targets[-1] if n else g

        return each(grads, clip), bounds_norm(targets)


class BlockRMS:
    def __init__(self, threshold):
        self.threshold = threshold

    def __call__(self, grads):
        def clip(_, g):
            return g / max(1.0, math.sqrt(np.mean(g * g)) / self.threshold)

        return each(grads, clip), bounds_norm(
            [self.threshold * math.sqrt(g.size) for g in grads if g is not None]
        )


class UClip:
    def __init__(self, inner):
        self.inner, self.kept = inner, {}

    def __call__(self, grads):
        sums = each(grads, lambda i, g: g + self.kept.get(i, 0.0))
        self.size = max(np.abs(s).max() for s in sums if s is not None)
        clipped, threshold = self.inner(sums)
        for i, (s, u) in enumerate(zip(sums, clipped, strict=True)):
            if s is not None:
                self.kept[i] = s - u
        return clipped, threshold


class Chain:
    def __init__(self, *rules):
        self.rules = rules

    def __call__(self, grads):
        for rule in self.rules:
            grads, threshold = rule(grads)
        return grads, threshold


RULES = {
    'value': (dict(type='value', clip_value=0.5), lambda: Value(-0.5, 0.5)),
    'range': (dict(type='value', min=-0.1, max=0.7), lambda: Value(-0.1, 0.7)),
    'norm': (dict(max_norm=2.0), lambda: Norm(2.0)),
    'norm 1': (dict(max_norm=4.0, norm_type=1), lambda: Norm(4.0, 1)),
    'norm inf': (dict(max_norm=2.0, norm_type='inf'), lambda: Norm(2.0, np.inf)),
    'norm min': (dict(max_norm=8.0, min_norm=5.0), lambda: Norm(8.0, 2, 5.0)),
    'param norm': (dict(type='ParamNormClip', max_norm=0.4), lambda: ParamNorm(0.4)),
    'param norm 3': (
        dict(type='ParamNormClip', max_norm=0.4, norm_type=3),
        lambda: ParamNorm(0.4, 3),
    ),
    'agc': (dict(type='AGC', clip_factor=0.3), lambda: AGC(0.3, 1e-3)),
    'autoclip': (dict(type='AutoClip'), lambda: AutoClip(10, 1000)),
    'autoclip window': (
        dict(type='AutoClip', percentile=73, window=31),
        lambda: AutoClip(73, 31),
    ),
    'zclip': (dict(type='ZClip'), lambda: ZClip(0.97, 2.5, 25, 'reciprocal', 1.0)),
    'zclip unbounded': (
        dict(type='ZClip', max_norm=None),
        lambda: ZClip(0.97, 2.5, 25, 'reciprocal', None),
    ),
    'zclip mean': (
        dict(type='ZClip', mode='mean', max_norm=20, alpha=0.9),
        lambda: ZClip(0.9, 2.5, 25, 'mean', 20),
    ),
    'zclip percentile': (
        dict(type='ZClip', mode='percentile', max_norm=None, z_threshold=1.5, warmup_steps=7),
        lambda: ZClip(0.97, 1.5, 7, 'percentile', None),
    ),
    'adagc': (dict(type='AdaGC'), lambda: AdaGC(1.05, 0.98, 100, 1.0)),
    'adagc short': (
        dict(type='AdaGC', rel=1.3, beta=0.8, warmup_steps=12, max_norm=7.0),
        lambda: AdaGC(1.3, 0.8, 12, 7.0),
    ),
    'spike': (dict(type='SpikeClip'), lambda: Spike(5000, 0.999, 20)),
    'spike tight': (
        dict(type='SpikeClip', theta=9, beta=0.9, grace_steps=3),
        lambda: Spike(9, 0.9, 3),
    ),
    'adaclip': (dict(type='AdaClip'), lambda: AdaClip(0.999)),
    'stabilizer': (dict(type='GradientStabilizer'), lambda: Stabilizer(0.7, 0.9)),
    'block rms': (dict(type='BlockRMSClip', threshold=0.3), lambda: BlockRMS(0.3)),
    'u-clip value': (
        dict(type='value', clip_value=0.8, carry=True),
        lambda: UClip(Value(-0.8, 0.8)),
    ),
    'u-clip norm': (dict(max_norm=6.0, carry=True), lambda: UClip(Norm(6.0))),
    'u-clip param norm': (
        dict(type='ParamNormClip', max_norm=3.0, carry=True),
        lambda: UClip(ParamNorm(3.0)),
    ),
    'stable-spam': (
        dict(type='ChainClip', clips=[dict(type='AdaClip'), dict(type='GradientStabilizer')]),
        lambda: Chain(AdaClip(0.999), Stabilizer(0.7, 0.9)),
    ),
    'chain of globals': (
        dict(
            type='ChainClip',
            clips=[dict(type='AutoClip', percentile=80, window=50), dict(max_norm=3.0)],
        ),
        lambda: Chain(AutoClip(80, 50), Norm(3.0)),
    ),
}


def finite(grads):
    return all(np.isfinite(g).all() for g in grads if g is not None)


@pytest.mark.parametrize('runner', [Runner, DeviceRunner], ids=['host', 'device'])
@pytest.mark.parametrize('name', RULES)
def test_rule_matches_the_formula_of_its_paper(name, runner):
    config, build = RULES[name]
    run, paper = runner(config, SHAPES), build()
    clipped = 0
    for t, arrays in enumerate(stream()):
        out = run([None if g is None else torch.from_numpy(np.array(g)) for g in arrays])
        if not finite(arrays):
            continue
        want, threshold = paper([None if g is None else g.astype(np.float64) for g in arrays])
        if runner is Runner:
            got_threshold = run.handle.stats()['clip_threshold']
        else:
            got_threshold = float(run.outcome.threshold)
        assert got_threshold == pytest.approx(threshold, rel=1e-5), f'threshold at step {t}'
        for i, (got, expected, given) in enumerate(zip(out, want, arrays, strict=True)):
            assert (got is None) == (expected is None)
            if got is not None:
                # If a sum cancels, its error is relative to the float32 summands.
                atol = 1e-5 * paper.size if 'u-clip' in name else 0
                got = got.numpy().astype(np.float64)
                if not (np.abs(got - expected) <= 1e-5 * np.abs(expected) + atol).all():
                    np.testing.assert_allclose(got, expected, 1e-5, atol, err_msg=f'{t}, {i}')
                clipped += not np.array_equal(got, given)
    assert clipped > 5, 'the stream never made this rule clip: it shows nothing'


def test_zclip_clips_after_a_nan():
    run = Runner(dict(type='ZClip', max_norm=None), [(3,)])
    rng = torch.Generator().manual_seed(0)
    for _ in range(30):
        run([torch.randn(3, generator=rng)])
    run([torch.tensor([1.0, float('nan'), 1.0])])
    assert run.handle.stats()['nonfinite'] == 1
    (out,) = run([torch.full((3,), 100.0)])
    assert 0 < float(out.norm()) < 5
    assert run.handle.stats()['clip_coef'] < 0.05


def test_stream_contains_spikes_zeros_and_nonfinite_steps():
    grads = stream()
    live = [[g for g in step if g is not None] for step in grads]
    assert len(grads) == STEPS
    assert sum(not finite(step) for step in grads) == 5
    assert sum(all((g == 0).all() for g in step) for step in live) == 3
    assert all(step[3] is None for step in grads[:40])
    norms = [total(step) for step in live if finite(step)]
    assert max(norms) > 20 * np.median(norms)
