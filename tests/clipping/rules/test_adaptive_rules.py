"""Properties of single rules: hand-computed cases, invariants, limits."""

import math
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from gclip_mm.clipping import ClipConfigError, attach, parse_clip_grad
from tests.clipping.cases import CASES, DeviceRunner, Runner, equal, norm

SHAPES = [(3, 4), (3,), (2, 3)]


def gradients(seed, size=1.0, shapes=SHAPES):
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=rng) * size for shape in shapes]


def of_norm(value):
    return [torch.tensor([0.6, 0.8]) * value]


# -- AutoClip ------------------------------------------------------------------------------------


def test_autoclip_matches_hand_computed_medians():
    run = Runner(dict(type='AutoClip', percentile=50, window=4), [(2,)])
    seen = []
    for value in (4.0, 2.0, 9.0, 1.0, 5.0, 5.0):
        (out,) = run(of_norm(value))
        seen.append((run.handle.stats()['clip_threshold'], norm([out])))
    medians = [4.0, 3.0, 4.0, 3.0, 3.5, 5.0]  # of 4 | 4 2 | 4 2 9 | 4 2 9 1 | 2 9 1 5 | 9 1 5 5
    assert [t for t, _ in seen] == pytest.approx(medians)
    assert [n for _, n in seen] == pytest.approx([4.0, 2.0, 4.0, 1.0, 3.5, 5.0])


@pytest.mark.parametrize('percentile', [0, 100])
def test_autoclip_percentiles_0_and_100_are_minimum_and_maximum(percentile):
    run = Runner(dict(type='AutoClip', percentile=percentile, window=50), [(2,)])
    values = [3.0, 7.0, 1.0, 5.0]
    for value in values:
        (out,) = run(of_norm(value))
    assert norm([out]) == pytest.approx(1.0 if percentile == 0 else 5.0)


def test_autoclip_window_is_bounded_and_another_size_is_refused():
    run = Runner(dict(type='AutoClip', window=10), [(2,)])
    for t in range(35):
        run(of_norm(1.0 + t))
    assert run.rule.state.history.shape == (10,)
    assert sorted(run.rule.state.history.tolist()) == pytest.approx(list(range(26, 36)))
    other = Runner(dict(type='AutoClip', window=20), [(2,)])
    other.handle.load_state_dict(run.handle.state_dict())
    with pytest.raises(ValueError, match='window=10, this run has window=20'):
        other(of_norm(1.0))


# -- ZClip ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('mode', 'expected'),
    # Warm-up 1, 3, 1, 3: mean 2, standard deviation 1. A norm of 12 has z = 10.
    [('reciprocal', 2 + 4 / 10), ('mean', 2.0), ('percentile', 4.0)],
)
def test_zclip_matches_hand_computed_thresholds(mode, expected):
    config = dict(type='ZClip', z_threshold=2.0, alpha=0.5, warmup_steps=4, mode=mode)
    run = Runner(dict(config, max_norm=None), [(2,)])
    for value in (1.0, 3.0, 1.0, 3.0):
        assert norm(run(of_norm(value))) == pytest.approx(value)
        assert run.handle.stats()['clip_threshold'] == math.inf
    assert norm(run(of_norm(3.9))) == pytest.approx(3.9)
    run = Runner(dict(config, max_norm=None), [(2,)])
    for value in (1.0, 3.0, 1.0, 3.0):
        run(of_norm(value))
    assert norm(run(of_norm(12.0))) == pytest.approx(expected)
    # The clipped norm, not 12, enters the averages.
    mean = 1.0 + expected / 2
    assert float(run.rule.state.mean) == pytest.approx(mean)
    assert float(run.rule.state.var) == pytest.approx(0.5 + (expected - mean) ** 2 / 2)


def test_zclip_max_norm_clips_in_warm_up_without_changing_statistics():
    run = Runner(dict(type='ZClip', warmup_steps=2, max_norm=1.5), [(2,)])
    assert norm(run(of_norm(2.0))) == pytest.approx(1.5)
    run(of_norm(4.0))
    assert float(run.rule.state.mean) == pytest.approx(3.0)
    assert float(run.rule.state.var) == pytest.approx(1.0)
    assert norm(run(of_norm(1.4))) == pytest.approx(1.4)


@pytest.mark.parametrize('runner', [Runner, DeviceRunner])
def test_zclip_with_zero_deviation_clips_to_the_mean(runner):
    run = runner(dict(type='ZClip', warmup_steps=3, max_norm=None), [(2,)])
    for _ in range(5):
        assert norm(run(of_norm(2.0))) == pytest.approx(2.0)
    assert norm(run(of_norm(50.0))) == pytest.approx(2.0)
    assert norm(run(of_norm(1.0))) == pytest.approx(1.0)


# -- AdaGC ---------------------------------------------------------------------------------------


def test_adagc_clips_only_the_tensor_with_the_spike():
    run = Runner(dict(type='AdaGC', warmup_steps=5), SHAPES)
    for t in range(10):
        run(gradients(t, 0.01))
    grads = gradients(10, 0.001)
    grads[1] = grads[1] * 1e4
    out = run(grads)
    assert equal(out[0], grads[0]) and equal(out[2], grads[2])
    assert norm([out[1]]) < 0.05


@pytest.mark.parametrize('runner', [Runner, DeviceRunner])
def test_adagc_zero_gradients_do_not_reduce_later_steps_to_zero(runner):
    """A box head without positive boxes gets zeros, which would make the paper's minimum 0."""
    run = runner(dict(type='AdaGC', warmup_steps=5), SHAPES)
    for t in range(40):
        grads = gradients(t, 0.01)
        if t % 2:
            grads[2].zero_()
        out = run(grads)
        if not t % 2:
            assert norm([out[2]]) > 0.2 * norm([grads[2]])
    assert run.rule.state.count.tolist() == [40, 40, 20]


def test_adagc_step_of_all_zeros_updates_the_average_as_in_the_paper():
    run = Runner(dict(type='AdaGC', warmup_steps=1, beta=0.75, max_norm=10.0), [(2,)])
    run(of_norm(4.0))
    run([torch.zeros(2)])
    assert run.rule.state.average.tolist() == pytest.approx([3.0])


# -- SpikeClip -----------------------------------------------------------------------------------


def test_spike_clip_matches_hand_computed_bounds():
    run = Runner(dict(type='SpikeClip', theta=4.0, beta=0.5, grace_steps=1), [(3,)])
    (out,) = run([torch.tensor([2.0, 100.0, 0.0])])  # v = 2, 5000, 0
    assert out.tolist() == [2.0, 100.0, 0.0]
    (out,) = run([torch.tensor([-7.0, 3.0, 9.0])])  # bounds sqrt(8), sqrt(20000), none yet
    assert out.tolist() == pytest.approx([-(8**0.5), 3.0, 9.0])
    assert run.rule.state.square[0].tolist() == pytest.approx([5.0, 2504.5, 40.5])
    assert float(run.rule.state.total[0]) == pytest.approx(2550.0)
    assert run.handle.stats()['clip_fraction'] == pytest.approx(1 / 3)


def test_spike_clip_reset_restarts_the_grace_steps():
    run = Runner(dict(type='SpikeClip', grace_steps=3), [(2,)])
    clipped = []
    for t in range(8):
        if t == 5:
            run.rule.reset()
        (out,) = run(of_norm(1e6 if t % 2 else 1.0))
        clipped.append(bool(norm([out]) < (1e5 if t % 2 else 0.5)))
    assert clipped == [False] * 8
    run = Runner(dict(type='SpikeClip', grace_steps=3), [(2,)])
    for _ in range(3):
        run(of_norm(1.0))
    assert norm(run(of_norm(1e6))) == pytest.approx((5000 * (1 - 0.999**3)) ** 0.5, rel=1e-4)
    run.rule.reset()
    assert norm(run(of_norm(1e6))) == pytest.approx(1e6)


@pytest.mark.parametrize('runner', [Runner, DeviceRunner])
def test_spike_clip_state_stays_finite_if_a_square_overflows(runner):
    run = runner(dict(type='SpikeClip', grace_steps=2), [(2,)])
    run(of_norm(1e25))
    (square,) = run.rule.state.square
    assert torch.isfinite(square).all()
    for _ in range(5):
        assert norm(run(of_norm(1.0))) == pytest.approx(1.0)


# -- AdaClip -------------------------------------------------------------------------------------


def test_adaclip_matches_hand_computed_bounds():
    run = Runner(dict(type='AdaClip', beta=0.5), [(3,)])
    (out,) = run([torch.tensor([1.0, -2.0, 0.5])])
    assert out.tolist() == [1.0, -2.0, 0.5]
    # peak = 0.5 * 1 + 0.5 * 8 = 4.5, bound = 4.5 / 0.75 = 6.
    (out,) = run([torch.tensor([-8.0, 7.0, 5.0])])
    assert out.tolist() == pytest.approx([-6.0, 7 * 6 / 8, 5.0])
    assert run.handle.stats()['clip_threshold'] == pytest.approx(6.0)
    assert run.handle.stats()['clip_fraction'] == pytest.approx(2 / 3)


# -- GradientStabilizer --------------------------------------------------------------------------


@pytest.mark.parametrize('size', [1e2, 1e6, 1e12])
def test_stabilizer_bounds_a_spike_of_any_size(size):
    run = Runner(dict(type='GradientStabilizer'), [(2,)])
    for _ in range(50):
        out = run(of_norm(0.3))
    assert norm(out) == pytest.approx(1.0)
    (out,) = run(of_norm(size))
    assert norm([out]) < 0.3 / 0.1**0.5 + 0.03
    np.testing.assert_allclose((out / norm([out])).numpy(), [0.6, 0.8], rtol=1e-5)


def test_stabilizer_output_is_independent_of_the_scale():
    run, other = (Runner(dict(type='GradientStabilizer'), SHAPES) for _ in range(2))
    for t in range(15):
        a, b = run(gradients(t)), other(gradients(t, 1000.0))
        for x, y in zip(a, b, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    'name', ['Adam', 'AdamW', 'NAdam', 'RAdam', 'Adamax', 'RMSprop', 'Adagrad', 'Adadelta']
)
def test_stabilizer_accepts_adam_like_optimizers(name):
    optimizer = getattr(torch.optim, name)([nn.Parameter(torch.ones(2))])
    attach(optimizer, dict(type='GradientStabilizer'))
    optimizer.param_groups[0]['params'][0].grad = torch.ones(2)
    optimizer.step()


@pytest.mark.parametrize('name', ['SGD', 'ASGD', 'LBFGS'])
@pytest.mark.parametrize('as_route', [False, True])
def test_stabilizer_refuses_sgd_and_leaves_no_hook(name, as_route):
    model = nn.Linear(2, 2)
    optimizer = getattr(torch.optim, name)(model.parameters(), lr=0.1)
    config = dict(type='GradientStabilizer')
    if as_route:
        config = dict(type='norm', max_norm=1.0, rules=[dict(config, match='bias')])
    with pytest.raises(ClipConfigError, match=f'{name} would step by.*Adam-like'):
        attach(optimizer, config, model=model)
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_stabilizer_refuses_sgd_in_wrapper_and_hook():
    pytest.importorskip('mmengine')
    from types import SimpleNamespace

    from mmengine.logging import MessageHub
    from mmengine.optim import OptimWrapper

    from gclip_mm.engine import GClipHook, GClipOptimWrapper

    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    config = dict(type='GradientStabilizer')
    with pytest.raises(ClipConfigError, match='Adam-like'):
        GClipOptimWrapper(optimizer, clip_grad=config)
    runner = SimpleNamespace(
        model=model,
        optim_wrapper=OptimWrapper(optimizer),
        message_hub=MessageHub.get_instance('refuses'),
    )
    with pytest.raises(ClipConfigError, match='Adam-like'):
        GClipHook(clip_grad=config).before_run(runner)


# -- BlockRMSClip and ParamNormClip --------------------------------------------------------------


def test_block_rms_matches_hand_computed_values():
    run = Runner(dict(type='BlockRMSClip', threshold=2.0), [(4,), (2, 2), ()])
    out = run([torch.full((4,), 6.0), torch.full((2, 2), 1.5), torch.tensor(-5.0)])
    assert out[0].tolist() == pytest.approx([2.0] * 4)
    assert out[1].tolist() == [[1.5, 1.5], [1.5, 1.5]]
    assert float(out[2]) == pytest.approx(-2.0)
    assert run.handle.stats()['clip_threshold'] == pytest.approx(2 * 9**0.5)


@pytest.mark.parametrize('p', [1.0, 2.0, 3.5, math.inf])
def test_param_norm_matches_torch_for_each_tensor(p):
    run = Runner(dict(type='ParamNormClip', max_norm=0.7, norm_type=p), SHAPES)
    grads = gradients(0)
    out = run(grads)
    for grad, ours in zip(grads, out, strict=True):
        param = nn.Parameter(torch.zeros_like(grad))
        param.grad = grad.clone()
        torch.nn.utils.clip_grad_norm_([param], 0.7, p)
        torch.testing.assert_close(ours, param.grad, rtol=1e-6, atol=0)


# -- several rules -------------------------------------------------------------------------------

#: Rules without an absolute bound: scaled gradients give equally scaled results.
EQUIVARIANT = [
    dict(type='AutoClip', percentile=40, window=7),
    dict(type='ZClip', warmup_steps=4, z_threshold=0.5, max_norm=None),
    dict(type='ZClip', warmup_steps=4, z_threshold=0.5, max_norm=None, mode='mean'),
    dict(type='AdaClip', beta=0.9),
    dict(type='SpikeClip', theta=1.5, beta=0.9, grace_steps=2),
]


@pytest.mark.parametrize('config', EQUIVARIANT, ids=lambda c: c['type'])
@pytest.mark.parametrize('factor', [2.0**-20, 2.0**14])
def test_scaled_gradients_give_scaled_results(config, factor):
    run, scaled = Runner(config, SHAPES), Runner(config, SHAPES)
    for t in range(20):
        grads = gradients(t, 30 if t == 15 else 1)
        a, b = run(grads), scaled([g * factor for g in grads])
        for x, y in zip(a, b, strict=True):
            torch.testing.assert_close(x * factor, y, rtol=1e-6, atol=0)


class BigTensors(TorchDispatchMode):
    """Count the new tensors of at least ``size`` elements that are alive at once."""

    def __init__(self, size):
        super().__init__()
        self.size, self.refs, self.most = size, [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        every = [*args, *(kwargs or {}).values()]
        given = {a.untyped_storage().data_ptr() for a in every if isinstance(a, torch.Tensor)}
        for x in out if isinstance(out, list | tuple) else [out]:
            if (
                isinstance(x, torch.Tensor)
                and x.numel() >= self.size
                and x.untyped_storage().data_ptr() not in given
            ):
                self.refs.append(weakref.ref(x))
        self.most = max(self.most, sum(ref() is not None for ref in self.refs))
        return out


def test_counter_of_large_tensors_counts_live_tensors():
    grad = torch.ones(10)
    with BigTensors(10) as counter:
        held = [grad * 2 for _ in range(3)]
        torch.mul(grad, 2.0, out=held[0]).add_(grad).view(2, 5)
    assert counter.most == 3


@pytest.mark.parametrize('case', CASES)
def test_step_allocates_at_most_one_large_tensor(case):
    """A clipping step may allocate one tensor-sized scratch buffer, once the state exists."""
    size = 400_000
    rng = torch.Generator().manual_seed(0)
    grads = [torch.randn(size, generator=rng), torch.randn(8, size // 8, generator=rng)]
    params = [nn.Parameter(torch.ones_like(g)) for g in grads]
    optimizer = torch.optim.AdamW(params, lr=0.0)
    attach(optimizer, CASES[case])
    engine_step = optimizer._optimizer_step_pre_hooks
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad.clone()
    for t in range(5):
        for param, grad in zip(params, grads, strict=True):
            param.grad.copy_(grad if t < 4 else 1000 * grad)
        with BigTensors(size) as counter:
            for hook in engine_step.values():
                hook(optimizer, (optimizer,), {})
    assert counter.most <= 1


def test_defaults_are_those_of_the_papers():
    rule = parse_clip_grad(dict(type='AutoClip')).outer
    assert (rule.percentile, rule.window) == (10, 1000)
    rule = parse_clip_grad(dict(type='ZClip')).outer
    assert (rule.alpha, rule.z_threshold, rule.warmup_steps) == (0.97, 2.5, 25)
    assert (rule.mode, rule.max_norm) == ('reciprocal', 1.0)
    rule = parse_clip_grad(dict(type='AdaGC')).outer
    assert (rule.rel, rule.beta, rule.warmup_steps, rule.max_norm) == (1.05, 0.98, 100, 1.0)
    rule = parse_clip_grad(dict(type='SpikeClip')).outer
    assert (rule.theta, rule.beta, rule.grace_steps) == (5000, 0.999, 20)
    assert parse_clip_grad(dict(type='AdaClip')).outer.beta == 0.999
    rule = parse_clip_grad(dict(type='GradientStabilizer')).outer
    assert (rule.gamma1, rule.gamma2) == (0.7, 0.9)
    assert parse_clip_grad(dict(type='BlockRMSClip')).outer.threshold == 1.0
