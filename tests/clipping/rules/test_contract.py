"""The contract of every rule, tested for all registered rules; a new rule only has to register.

``cases.CASES`` has further settings for rules whose example alone does not test them enough.
"""

import inspect
import io
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from gclip_mm.clipping import CLIPPERS, ClipConfigError, NonFiniteGradientError, attach
from gclip_mm.clipping import parse_clip_grad as parse
from gclip_mm.clipping.gradients import pieces
from tests.clipping.cases import (
    CASES,
    DeviceRunner,
    Runner,
    equal,
    example,
    make_optimizer,
    norm,
    on_device,
)

ALL_SHAPES = [(), (4,), (0,), (3, 2), (0, 4), (2, 3, 2), (4, 1, 2, 2), (2, 2, 1, 2, 1)]
SHAPES = [(3, 4), (3,), (2, 3)]
#: Keys that may be negative.
SIGNED = {('ValueClip', 'min'), ('ValueClip', 'max')}


def keys(*kinds):
    """Return (rule, key) for each constructor key annotated with one of these types."""
    return [
        (name, key)
        for name in CLIPPERS
        for key, parameter in inspect.signature(CLIPPERS.get(name)).parameters.items()
        if any(kind in str(parameter.annotation) for kind in kinds)
    ]


def with_key(name, key, value):
    config = example(name)
    if name == 'ValueClip' and key in ('min', 'max'):
        config.pop('clip_value')
    return {**config, key: value}


def gradients(seed, shapes=SHAPES, dtype=torch.float32, size=1.0):
    rng = torch.Generator().manual_seed(seed)
    return [(torch.randn(shape, generator=rng) * size).to(dtype) for shape in shapes]


# -- construction ------------------------------------------------------------------------------


def test_every_case_parses():
    for config in CASES.values():
        parse(config)


@pytest.mark.parametrize('name', CLIPPERS)
def test_docstring_documents_use_example_keys_and_state(name):
    cls = CLIPPERS.get(name)
    text = inspect.getdoc(cls) or ''
    for part in ('Good for:', 'Bad for:', 'Example:', 'clip_grad=dict('):
        assert part in text, f'the docstring of {name} has no {part!r}'
    assert cls.source, f'{name} has no class attribute source'
    for key, parameter in inspect.signature(cls).parameters.items():
        assert f'    {key}: ' in text, f'{key} is not documented under "Args:"'
        # The tests of invalid values choose the values by the annotation.
        assert parameter.annotation is not parameter.empty, f'{key} has no annotation'
    rule = parse(example(name)).outer
    assert set(rule.thresholds) <= set(inspect.signature(cls).parameters)
    if cls.State is not None:
        for field in cls.State._fields:
            assert f'{field}: ' in cls.State.__doc__, f'{field} of the state is not documented'


@pytest.mark.parametrize(('name', 'key'), keys('float', 'int'))
@pytest.mark.parametrize('value', [math.nan, -1, 'much', True, [1.0]], ids=repr)
def test_invalid_number_raises_and_names_the_key(name, key, value):
    if value == -1 and (name, key) in SIGNED:
        pytest.skip('may be negative')
    with pytest.raises(ClipConfigError, match=key):
        parse(with_key(name, key, value))


@pytest.mark.parametrize(
    ('name', 'key'), [pair for pair in keys('int') if pair not in keys('float')]
)
def test_refuses_a_fraction_where_a_whole_number_is_needed(name, key):
    with pytest.raises(ClipConfigError, match=f'{key} must be a whole number'):
        parse(with_key(name, key, 2.5))


@pytest.mark.parametrize(('name', 'key'), keys('bool'))
def test_flag_other_than_a_bool_raises(name, key):
    with pytest.raises(ClipConfigError, match=f'{key} must be True or False'):
        parse(with_key(name, key, 'yes'))


@pytest.mark.parametrize('name', CLIPPERS)
def test_misspelt_key_raises_with_a_suggestion(name):
    key = next(iter(inspect.signature(CLIPPERS.get(name)).parameters))
    with pytest.raises(ClipConfigError, match=f"no key '{key}s'.*Did you mean '{key}'"):
        parse({**example(name), f'{key}s': 1})


@pytest.mark.parametrize('name', CLIPPERS)
def test_missing_key_raises_and_is_named(name):
    parameters = inspect.signature(CLIPPERS.get(name)).parameters
    for key, parameter in parameters.items():
        if parameter.default is parameter.empty:
            config = example(name)
            config.pop(key)
            with pytest.raises(ClipConfigError, match=f"needs the key '{key}'"):
                parse(config)


@pytest.mark.parametrize('name', CLIPPERS)
def test_schedule_changes_every_threshold(name):
    for key in CLIPPERS.get(name).thresholds:
        config = example(name)
        parameter = inspect.signature(CLIPPERS.get(name)).parameters[key]
        if config.get(key, parameter.default) in (None, parameter.empty):
            continue
        run = Runner(
            {
                **config,
                'schedule': dict(type='linear', param_name=key, start_factor=0.5, end=3),
            },
            SHAPES,
        )
        base = getattr(run.rule, key)
        seen = []
        for t in range(4):
            run(gradients(t))
            seen.append(getattr(run.rule, key) / base)
        assert seen == pytest.approx([0.5, 0.75, 1.0, 1.0])


# -- effect on gradients -----------------------------------------------------------------------


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize('case', CASES)
def test_any_shape_and_dtype_gives_finite_gradients_and_a_correct_record(case, dtype):
    run = Runner(CASES[case], ALL_SHAPES, dtype)
    for t in range(8):
        grads = gradients(t, ALL_SHAPES, dtype, size=5 if t == 6 else 1)
        out = run(grads)
        assert all(torch.isfinite(x).all() for x in out)
        assert all(
            a.dtype == b.dtype and a.shape == b.shape for a, b in zip(out, grads, strict=True)
        )
        if run.rule.never_increases:
            slack = 1 + 4 * torch.finfo(dtype).eps
            assert norm(out) <= norm(grads) * slack
        stats = run.handle.stats()
        p = run.rule.norm_type
        assert stats['grad_norm'] == pytest.approx(norm(grads, p), rel=1e-5)
        # In half precision, each scaled element is rounded.
        loose = 1e-5 if dtype in (torch.float32, torch.float64) else 2e-2
        assert stats['grad_norm_post'] == pytest.approx(norm(out, p), rel=loose)
        assert stats['clip_coef'] == pytest.approx(norm(out, p) / norm(grads, p), rel=loose)
        assert 0 <= stats['clip_fraction'] <= 1


@pytest.mark.parametrize('case', CASES)
def test_every_case_clips_at_least_once(case):
    """Guards the other tests, which show nothing for a rule that never clips."""
    run = Runner(CASES[case], SHAPES)
    changed = 0
    for t in range(30):
        grads = gradients(t, size=1e4 if t == 25 else 1)
        changed += not equal(run(grads), grads)
    assert changed


@pytest.mark.parametrize('case', CASES)
def test_non_contiguous_gradients_give_the_same_results(case):
    run, plain = Runner(CASES[case], [(4, 3, 2, 2)]), Runner(CASES[case], [(4, 3, 2, 2)])
    for t in range(8):
        (grad,) = gradients(t, [(4, 3, 2, 2)])
        (a,) = run([grad.to(memory_format=torch.channels_last)])
        (b,) = plain([grad])
        torch.testing.assert_close(a, b, rtol=1e-6, atol=0)


@pytest.mark.parametrize('case', CASES)
def test_size_of_pieces_does_not_change_the_bits(case, monkeypatch):
    """Large tensors are processed in pieces."""
    whole, cut = Runner(CASES[case], [(10, 10)]), Runner(CASES[case], [(10, 10)])
    for t in range(8):
        grads = gradients(t, [(10, 10)], size=20 if t == 6 else 1)
        monkeypatch.setattr(pieces, '_CHUNK_CPU', 1 << 17)
        expected = whole(grads)
        monkeypatch.setattr(pieces, '_CHUNK_CPU', 7)
        assert equal(cut(grads), expected)
        assert cut.handle.stats() == whole.handle.stats()


@pytest.mark.parametrize('size', [1e20, 1e-30])
@pytest.mark.parametrize('case', CASES)
def test_extreme_gradients_are_neither_zeroed_nor_taken_for_inf(case, size):
    run = Runner(CASES[case], SHAPES)
    for t in range(6):
        grads = gradients(t, size=size)
        out = run(grads)
        stats = run.handle.stats()
        assert stats['nonfinite'] == 0
        assert stats['grad_norm'] == pytest.approx(norm(grads, run.rule.norm_type), rel=1e-4)
        assert all(torch.isfinite(x).all() for x in out)
        assert all((x != 0).any() for x in out)
        if run.rule.never_increases:
            assert norm(out) <= norm(grads) * 1.001
    # After extreme steps, the state still works.
    for t in range(6):
        out = run(gradients(t))
        assert all(torch.isfinite(x).all() for x in out)


@pytest.mark.parametrize('case', CASES)
def test_zero_gradients_stay_zero(case):
    run = Runner(CASES[case], SHAPES)
    zeros = [torch.zeros(shape) for shape in SHAPES]
    for t in range(3):
        out = run(zeros)
        if t == 0 or not getattr(run.rule, 'carry', False):
            assert all((x == 0).all() for x in out)
        stats = run.handle.stats()
        assert stats['grad_norm'] == 0 and stats['nonfinite'] == 0
        assert not math.isnan(stats['clip_coef'])
    # Zeros, at the start or later, do not keep later gradients at zero.
    for t in range(30):
        grads = gradients(t)
        if t % 5 == 0:
            grads[1].zero_()
        out = run(grads)
        assert all(torch.isfinite(x).all() for x in out)
    if case != 'AutoClip short':  # its threshold may be zero while zeros are in its window
        assert all((x != 0).any() for x in out)


@pytest.mark.parametrize('case', CASES)
def test_missing_and_late_gradients_are_accepted(case):
    run = Runner(CASES[case], SHAPES)
    for t in range(25):
        grads = gradients(t, size=30 if t == 20 else 1)
        if t < 8:
            grads[2] = None
        if t % 3 == 1:
            grads[0] = None
        out = run(grads)
        assert [x is None for x in out] == [x is None for x in grads]
        assert all(torch.isfinite(x).all() for x in out if x is not None)
        if run.rule.never_increases:
            assert norm(out) <= norm(grads) * (1 + 1e-6)
    out = run([None, None, None])
    assert out == [None, None, None]


@pytest.mark.parametrize('case', [c for c in CASES if not parse(CASES[c]).outer.is_global])
def test_late_parameter_starts_from_its_own_first_gradient(case):
    """If a rule uses only the gradients of the parameter itself, it acts as if it were alone."""
    config = CASES[case]
    kind = parse(config).outer
    shared = {'NormClip', 'ChainClip', 'AdaGC', 'Auto'}
    late, alone = Runner(config, SHAPES), Runner(config, SHAPES[2:])
    for t in range(20):
        grads = gradients(t, size=20 if t == 15 else 1)
        first = late([*grads[:2], grads[2] if t >= 6 else None])[2]
        if t >= 6:
            (second,) = alone(grads[2:])
            if kind.name in shared:
                # These rules also use a global norm, so only the start can be compared.
                assert torch.isfinite(first).all()
            else:
                assert equal(first, second), f'step {t}'


@pytest.mark.parametrize('case', [c for c in CASES if parse(CASES[c]).outer.is_global])
def test_global_rule_keeps_the_direction(case):
    run = Runner(CASES[case], SHAPES)
    for t in range(12):
        grads = gradients(t, size=20 if t == 9 else 1)
        out = run(grads)
        a, b = (torch.cat([x.double().reshape(-1) for x in xs]) for xs in (grads, out))
        cosine = float(a @ b / a.norm() / b.norm())
        assert cosine == pytest.approx(1, abs=1e-10)


finite = st.floats(-1e6, 1e6, width=32)


@pytest.mark.parametrize('case', CASES)
@given(steps=st.lists(st.lists(finite, min_size=6, max_size=6), min_size=1, max_size=6))
@settings(max_examples=15, deadline=None)
def test_any_numbers_give_finite_gradients_that_do_not_increase(case, steps):
    run = Runner(CASES[case], [(2, 2), (2,)])
    for numbers in steps:
        grads = [torch.tensor(numbers[:4]).view(2, 2), torch.tensor(numbers[4:])]
        out = run(grads)
        assert all(torch.isfinite(x).all() for x in out)
        if run.rule.never_increases:
            assert norm(out) <= norm(grads) * (1 + 1e-5)
            for a, b in zip(out, grads, strict=True):
                assert (a.abs() <= b.abs() * (1 + 1e-5)).all()
                assert (a * b >= 0).all()


STATELESS = [
    c
    for c in CASES
    if parse(CASES[c]).outer.State is None or CLIPPERS.get(CASES[c]['type']).__name__ == 'NormClip'
]
STATELESS = [c for c in STATELESS if not getattr(parse(CASES[c]).outer, 'carry', False)]


@pytest.mark.parametrize('case', STATELESS)
@given(numbers=st.lists(finite, min_size=6, max_size=6))
@settings(max_examples=30, deadline=None)
def test_stateless_rule_is_idempotent(case, numbers):
    """Up to the 1e-6 that torch's formula adds to the denominator."""
    run = Runner(CASES[case], [(2, 2), (2,)])
    once = run([torch.tensor(numbers[:4]).view(2, 2), torch.tensor(numbers[4:])])
    twice = run(once)
    for a, b in zip(once, twice, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=0)


# -- nonfinite steps ---------------------------------------------------------------------------


class Training:
    """A small model with a clipped optimizer, and all state that a bad step must not change."""

    def __init__(self, config, sgd=True, fused=False):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))
        self.optimizer = make_optimizer(config, self.model.parameters(), sgd, fused=fused)
        self.handle = attach(self.optimizer, config)

    def step(self, t, bad=False):
        rng = torch.Generator().manual_seed(t)
        x = torch.randn(6, 4, generator=rng) * (30 if t % 7 == 6 else 1)
        self.optimizer.zero_grad()
        self.model(x).square().mean().backward()
        if bad:
            self.model[2].weight.grad[0, 0] = math.nan if t % 2 else math.inf
        self.optimizer.step()

    def everything(self):
        return {
            'params': [p.detach().clone() for p in self.model.parameters()],
            'optimizer': list(_copy(self.optimizer.state_dict()['state']).items()),
            'rule': [route['state'] for route in self.handle.state_dict()['routes']],
        }


def _copy(value):
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return value.clone() if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize('device', [False, True], ids=['host', 'device'])
@pytest.mark.parametrize('fused', [False, True], ids=['plain', 'fused'])
@pytest.mark.parametrize('sgd', [True, False], ids=['sgd', 'adamw'])
@pytest.mark.parametrize('case', CASES)
def test_run_with_skipped_steps_equals_a_run_without_them(case, sgd, fused, device):
    """The first step is among the skipped ones."""
    config = {**CASES[case], 'nonfinite': 'skip'}
    spoiled, clean = Training(config, sgd, fused), Training(config, sgd, fused)

    def run():
        for t in range(12):
            if t in (0, 5, 6, 9):
                before = spoiled.everything()
                spoiled.step(t, bad=True)
                assert spoiled.handle.stats()['nonfinite'] == 1
                after = spoiled.everything()
                assert equal(before['params'], after['params'])
                if t > 0:  # before the first good step, the state may be absent or all zeros
                    assert equal(before['optimizer'], after['optimizer'])
                    assert equal(before['rule'], after['rule'])
            spoiled.step(100 + t)
            clean.step(100 + t)

    if device:
        with on_device():
            run()
    else:
        run()
    ours, theirs = spoiled.everything(), clean.everything()
    assert equal(ours['params'], theirs['params'])
    assert equal(ours['rule'], theirs['rule'])
    assert equal(ours['optimizer'], theirs['optimizer'])


@pytest.mark.parametrize('case', CASES)
def test_raise_names_the_parameter_and_changes_nothing(case):
    run = Training({**CASES[case], 'nonfinite': 'raise'})
    for t in range(5):
        run.step(t)
    before = run.everything()
    with pytest.raises(NonFiniteGradientError, match='param_2'):
        run.step(5, bad=True)
    assert equal(before, run.everything())
    run.step(6)
    assert not equal(before['params'], run.everything()['params'])


@pytest.mark.parametrize('policy', ['zero', 'off'])
@pytest.mark.parametrize('case', CASES)
def test_nonfinite_step_under_zero_and_off_leaves_the_state_unchanged(case, policy):
    run = Training({**CASES[case], 'nonfinite': policy})
    for t in range(6):
        run.step(t)
    before = run.everything()
    run.step(7, bad=True)
    after = run.everything()
    assert equal(before['rule'], after['rule'])
    assert run.handle.stats()['nonfinite'] == 1
    params_finite = all(torch.isfinite(p).all() for p in after['params'])
    assert params_finite == (policy == 'zero')
    if policy == 'zero':
        assert not equal(before['params'], after['params'])


@pytest.mark.parametrize('case', CASES)
def test_nonfinite_step_on_a_device_leaves_the_state_unchanged(case):
    run = DeviceRunner(CASES[case], SHAPES)
    for t in range(8):
        run(gradients(t))
    before = run.rule.state_dict()
    bad = gradients(8)
    bad[1][0] = math.nan
    run(bad)
    assert equal(before, run.rule.state_dict())
    run(gradients(9))
    assert (before == {}) or not equal(before, run.rule.state_dict())


@pytest.mark.parametrize('case', CASES)
def test_zeroed_step_on_a_device_leaves_the_state_unchanged(case):
    """Under `zero` the host reads the flag and passes it to the rule."""
    run = DeviceRunner(CASES[case], SHAPES)
    for t in range(8):
        run(gradients(t))
    before = run.rule.state_dict()
    out = run(gradients(8), ok=torch.zeros((), dtype=torch.bool))
    assert equal(before, run.rule.state_dict())
    assert all(torch.isfinite(x).all() for x in out)


# -- state -------------------------------------------------------------------------------------


def reload(state):
    """Save and load a state through a file, as in a checkpoint."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize('case', CASES)
def test_reloaded_state_continues_bit_identically(case):
    run, other = Runner(CASES[case], SHAPES), Runner(CASES[case], SHAPES)
    for t in range(9):
        grads = gradients(t)
        run([grads[0], grads[1], None])
    saved = run.handle.state_dict()
    kept = reload(saved)
    assert equal(saved, kept)
    other.handle.load_state_dict(kept)
    for t in range(9, 20):
        grads = gradients(t, size=20 if t == 12 else 1)
        assert equal(run(grads), other(grads))
        assert run.handle.stats() == other.handle.stats()
    assert equal(run.handle.state_dict(), other.handle.state_dict())
    # The saved state is a copy that later steps did not change.
    assert equal(saved, kept)


@pytest.mark.parametrize('case', CASES)
def test_state_of_another_rule_is_refused(case):
    run = Runner(CASES[case], SHAPES)
    for t in range(3):
        run(gradients(t))
    state = run.handle.state_dict()
    if not any(route['state'] for route in state['routes']):
        pytest.skip('keeps no state')
    wrong = {**state['routes'][0]['state'], 'surprise': torch.zeros(())}
    state['routes'][0]['state'] = wrong
    before = run.handle.state_dict()
    run.handle.load_state_dict(state)
    with pytest.raises(ValueError, match='keeps the state'):
        run(gradients(3))
    assert equal(before['routes'], run.handle.engine.state_dict()['routes'])


@pytest.mark.parametrize('case', CASES)
def test_reset_rule_equals_a_new_one(case):
    run, fresh = Runner(CASES[case], SHAPES), Runner(CASES[case], SHAPES)
    for t in range(6):
        run(gradients(t))
    run.rule.reset()
    assert run.rule.state_dict() == {}
    for t in range(6, 12):
        assert equal(run(gradients(t)), fresh(gradients(t)))


# -- cost and side effects ---------------------------------------------------------------------


class HostReads(TorchDispatchMode):
    """Count the reads that make the host wait for its device."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._schema.name in ('aten::_local_scalar_dense', 'aten::item', 'aten::nonzero'):
            self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize('device', [False, True], ids=['host', 'device'])
@pytest.mark.parametrize('sgd', [True, False], ids=['sgd', 'adamw'])
@pytest.mark.parametrize('case', CASES)
def test_fused_step_adds_no_host_read(case, sgd, device):
    run = Training(CASES[case], sgd, fused=True)
    bare = make_optimizer(CASES[case], [nn.Parameter(torch.ones(3))], sgd, fused=True)
    # The first step of SGD with momentum may read: it creates the buffers.
    run.step(0)
    bare.param_groups[0]['params'][0].grad = torch.ones(3)
    bare.step()

    def reads(step):
        with HostReads() as counter:
            step()
        return counter.count

    own = reads(bare.step)
    assert reads(lambda: torch.ones(()).item()) == 1

    # A view selects its backend once, so rebuild the views within the same device setting.
    run.handle.engine.book.refresh()

    def steps():
        for t in range(1, 9):
            run.step(t, bad=t == 5)

    assert reads(steps) == 8 * own if not device else _on_device(lambda: reads(steps)) == 8 * own


def _on_device(function):
    with on_device():
        return function()


@pytest.mark.parametrize('fused', [False, True], ids=['plain', 'fused'])
@pytest.mark.parametrize('case', CASES)
def test_steps_leave_no_attributes_on_the_optimizer(case, fused):
    run = Training(CASES[case], fused=fused)
    run.step(0)
    before = set(vars(run.optimizer))
    groups = [set(group) for group in run.optimizer.param_groups]
    for t in range(1, 9):
        run.step(t, bad=t == 4)
        assert set(vars(run.optimizer)) == before
        assert all(getattr(run.optimizer, key, None) is None for key in ('grad_scale', 'found_inf'))
    run.handle.remove()
    assert not run.optimizer._optimizer_step_pre_hooks
    assert not run.optimizer._optimizer_step_post_hooks
    assert [set(group) for group in run.optimizer.param_groups] == groups


@pytest.mark.parametrize('case', CASES)
def test_two_runs_are_bit_identical(case):
    a, b = Training(CASES[case]), Training(CASES[case])
    for t in range(10):
        a.step(t)
        b.step(t)
    assert equal(a.everything(), b.everything())


@pytest.mark.parametrize('case', CASES)
def test_fused_run_equals_plain_run_within_rounding(case):
    plain, fused = Training(CASES[case]), Training(CASES[case], fused=True)
    for t in range(10):
        plain.step(t)
        fused.step(t)
    for a, b in zip(plain.model.parameters(), fused.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
