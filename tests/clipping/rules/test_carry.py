"""Carry (U-Clip): the clipped part of a gradient is added to later gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gclip_mm.clipping import ClipConfigError, parse_clip_grad
from tests.clipping.cases import DeviceRunner, Runner, equal, norm

SHAPES = [(3, 4), (5,)]
CONFIGS = {
    'value': dict(type='value', clip_value=0.2),
    'range': dict(type='value', min=-0.05, max=0.3),
    'one-sided': dict(type='value', max=0.3),
    'norm': dict(type='norm', max_norm=0.8),
    'norm 1': dict(type='norm', max_norm=2.0, norm_type=1),
    'param norm': dict(type='ParamNormClip', max_norm=0.5),
}
each_rule = pytest.mark.parametrize('config', CONFIGS.values(), ids=CONFIGS)


def gradients(seed, size=1.0, dtype=torch.float32):
    rng = torch.Generator().manual_seed(seed)
    return [(torch.randn(shape, generator=rng) * size).to(dtype) for shape in SHAPES]


@each_rule
@pytest.mark.parametrize('runner', [Runner, DeviceRunner], ids=['host', 'device'])
def test_sum_of_outputs_and_buffer_equals_the_sum_of_inputs(config, runner):
    run = runner(dict(config, carry=True), SHAPES)
    given_sum = [torch.zeros(shape, dtype=torch.float64) for shape in SHAPES]
    taken_sum = [torch.zeros(shape, dtype=torch.float64) for shape in SHAPES]
    for t in range(40):
        grads = gradients(t)
        for i, (g, u) in enumerate(zip(grads, run(grads), strict=True)):
            given_sum[i] += g
            taken_sum[i] += u
    for g, u, kept in zip(given_sum, taken_sum, run.rule.state.buffers, strict=True):
        assert kept.dtype == torch.float32
        torch.testing.assert_close(g, u + kept, rtol=0, atol=1e-4)


@each_rule
def test_buffer_is_paid_out_when_gradients_are_zero(config, without_host_kernels):
    """Without kernels, both runs take the same path and are bit-identical."""
    run = Runner(dict(config, carry=True), SHAPES)
    plain = Runner(config, SHAPES)
    (first, *_) = given_grads = gradients(0)
    zeros = [torch.zeros(shape) for shape in SHAPES]
    assert equal(run(given_grads), plain(given_grads))  # the buffer is still empty
    sums = [torch.zeros(shape) for shape in SHAPES]
    for g, u in zip(sums, plain(given_grads), strict=True):
        g += u
    for _ in range(100):
        for total, u in zip(sums, run(zeros), strict=True):
            total += u
    for total, g in zip(sums, given_grads, strict=True):
        torch.testing.assert_close(total, g, rtol=1e-4, atol=1e-5)
    assert first is given_grads[0]


@each_rule
@given(st.lists(st.lists(st.floats(-100, 100, width=32), min_size=4, max_size=4), max_size=8))
@settings(max_examples=20, deadline=None)
def test_bound_holds_for_any_buffer(config, steps):
    run = Runner(dict(config, carry=True), [(2,), (2,)])
    for numbers in steps:
        out = run([torch.tensor(numbers[:2]), torch.tensor(numbers[2:])])
        if config['type'] == 'value':
            high = config.get('clip_value', config.get('max'))
            low = config.get('min', -high if 'clip_value' in config else -1e9)
            assert all((u >= low - 1e-6).all() and (u <= high + 1e-6).all() for u in out)
        elif config['type'] == 'norm':
            assert norm(out, config.get('norm_type', 2)) <= config['max_norm'] * (1 + 1e-5)
        else:
            assert all(norm([u]) <= config['max_norm'] * (1 + 1e-5) for u in out)


@each_rule
@pytest.mark.parametrize('policy', ['skip', 'zero', 'off'])
def test_nonfinite_step_leaves_the_buffer_unchanged(config, policy):
    run = Runner(dict(config, carry=True, nonfinite=policy), SHAPES)
    for t in range(3):
        run(gradients(t))
    before = run.rule.state_dict()
    bad = gradients(3)
    bad[0][0, 0] = float('nan')
    out = run(bad)
    assert equal(before, run.rule.state_dict())
    if policy == 'skip':
        # The optimizer was not called.
        assert out is None
    if policy == 'zero':
        # The step does not use the buffer, so the buffer is not paid out twice.
        bad[0][0, 0] = 0.0
        assert equal(out, Runner(config, SHAPES)(bad))


@each_rule
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_buffer_holds_rounding_errors_of_low_precision_gradients(config, dtype):
    run = Runner(dict(config, carry=True), SHAPES, dtype)
    total = [torch.zeros(shape, dtype=torch.float64) for shape in SHAPES]
    for t in range(30):
        grads = gradients(t, dtype=dtype)
        for left, g, u in zip(total, grads, run(grads), strict=True):
            assert u.dtype == dtype
            left += g.double() - u.double()
    for left, kept in zip(total, run.rule.state.buffers, strict=True):
        assert kept.dtype == torch.promote_types(dtype, torch.float32)
        torch.testing.assert_close(kept.double(), left, rtol=0, atol=1e-4)


def test_sum_outside_float16_is_clipped_and_not_inf():
    run = Runner(dict(type='norm', max_norm=1.0, carry=True), [(2,)], torch.float16)
    for _ in range(5):
        (out,) = run([torch.full((2,), 60000.0, dtype=torch.float16)])
        assert norm([out]) == pytest.approx(1.0, rel=1e-3)


def test_missing_gradients_keep_their_buffer():
    run = Runner(dict(type='value', clip_value=0.1, carry=True), SHAPES)
    a, b = gradients(0)
    run([a, None])
    assert run.rule.state.buffers[1] is None
    kept = run.rule.state.buffers[0].clone()
    run([None, b])
    assert equal(kept, run.rule.state.buffers[0])
    (out, _) = run([torch.zeros_like(a), torch.zeros_like(b)])
    torch.testing.assert_close(out, kept.clamp(-0.1, 0.1))


def test_record_counts_the_buffer_in_fraction_and_post_norm():
    run = Runner(dict(type='value', clip_value=1.0, carry=True), [(4,)])
    run([torch.tensor([3.0, 0.5, -1.5, 1.0])])
    stats = run.handle.stats()
    assert stats['clip_fraction'] == 0.5
    assert stats['grad_norm'] == pytest.approx((9 + 0.25 + 2.25 + 1) ** 0.5)
    assert stats['grad_norm_post'] == pytest.approx(3.25**0.5)
    run([torch.zeros(4)])
    stats = run.handle.stats()
    assert stats['clip_fraction'] == 0.25  # the buffer held 2, 0, -0.5, 0
    assert stats['grad_norm'] == 0
    assert stats['grad_norm_post'] == pytest.approx(1.25**0.5)


def test_memory_is_one_buffer_per_gradient_reused_in_place():
    run = Runner(dict(type='norm', max_norm=1.0, carry=True), SHAPES)
    run(gradients(0))
    held = [buffer.data_ptr() for buffer in run.rule.state.buffers]
    assert [b.shape for b in run.rule.state.buffers] == [torch.Size(s) for s in SHAPES]
    run(gradients(1))
    assert held == [buffer.data_ptr() for buffer in run.rule.state.buffers]


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        (dict(type='norm', max_norm=2.0, min_norm=1.0, carry=True), 'carry .* min_norm'),
        (dict(type='value', min=0.1, max=0.2, carry=True), 'carry needs a range that contains 0'),
        (dict(type='AGC', carry=True), "AGC has no key 'carry'"),
        (dict(type='norm', max_norm=1.0, carry=1), 'carry must be True or False, got 1'),
    ],
)
def test_invalid_carry_configs_raise(config, message):
    with pytest.raises(ClipConfigError, match=message):
        parse_clip_grad(config)


@pytest.mark.parametrize('kind', ['norm', 'ParamNormClip'])
def test_state_with_carry_is_refused_by_a_rule_without(kind):
    run = Runner(dict(type=kind, max_norm=1.0, carry=True), SHAPES)
    run(gradients(0))
    plain = Runner(dict(type=kind, max_norm=1.0), SHAPES)
    plain.handle.load_state_dict(run.handle.state_dict())
    with pytest.raises(ValueError, match='keeps the state'):
        plain(gradients(1))
