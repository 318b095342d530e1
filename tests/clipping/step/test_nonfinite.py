"""NaN and inf in gradients, under every policy."""

import math

import pytest
import torch
from torch import nn

from gclip_mm import NonFiniteGradientError, attach
from gclip_mm.clipping import LOG_KEYS
from tests.clipping.cases import CASES, equal, make_optimizer
from tests.clipping.steps import gradients, make_params, set_grads

OPTIMIZERS = {
    'SGD': lambda params, fused: torch.optim.SGD(params, lr=0.1, momentum=0.9, fused=fused),
    'Adam': lambda params, fused: torch.optim.Adam(params, lr=0.01, weight_decay=0.1, fused=fused),
    'AdamW': lambda params, fused: torch.optim.AdamW(params, lr=0.01, amsgrad=True, fused=fused),
}


def everything(params, optimizer, handle):
    """All that a step can change: parameters, optimizer state with step counts, rule state."""
    state = handle.state_dict()
    return dict(
        params=[p.detach().clone() for p in params],
        optimizer=[dict(optimizer.state[p]) for p in params if p in optimizer.state],
        rules=[route['state'] for route in state['routes']],
    )


@pytest.mark.parametrize('spoil', [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize('fused', [False, True])
@pytest.mark.parametrize('optimizer', OPTIMIZERS)
@pytest.mark.parametrize('config', [dict(max_norm=1.0), dict(type='AGC'), dict(clip_value=0.1)])
def test_run_with_skipped_steps_is_bit_identical_to_one_without(config, optimizer, fused, spoil):
    """Also if the very first step is bad."""
    spoilt, clean = make_params(), make_params()
    a, b = OPTIMIZERS[optimizer](spoilt, fused), OPTIMIZERS[optimizer](clean, fused)
    one, two = attach(a, config), attach(b, config)
    for step in range(4):
        set_grads(spoilt, gradients(step, spoil))
        a.step()
        assert one.stats()['nonfinite'] == 1
        set_grads(spoilt, gradients(step))
        a.step()
        set_grads(clean, gradients(step))
        b.step()
        assert one.stats() == two.stats()
    assert equal(everything(spoilt, a, one), everything(clean, b, two))


@pytest.mark.parametrize('fused', [False, True])
@pytest.mark.parametrize('case', CASES)
def test_skip_changes_neither_gradients_nor_any_state(case, fused, without_host_kernels):
    config = CASES[case]
    params = make_params()
    optimizer = make_optimizer(config, params, fused=fused)
    handle = attach(optimizer, config)
    for step in range(3):
        set_grads(params, gradients(step))
        optimizer.step()
    before = everything(params, optimizer, handle)
    bad = gradients(3, math.nan)
    set_grads(params, bad)
    optimizer.step()
    after = everything(params, optimizer, handle)
    assert equal(after['params'], before['params'])
    assert equal(after['optimizer'], before['optimizer'])
    assert equal(after['rules'], before['rules'])
    assert equal([p.grad for p in params], bad)
    stats = handle.stats()
    assert math.isnan(stats['grad_norm']) and stats['nonfinite'] == 1
    assert stats['grad_norm_post'] == stats['clip_coef'] == stats['clip_fraction'] == 0


@pytest.mark.parametrize('spoil', [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize('fused', [False, True])
@pytest.mark.parametrize('config', [dict(max_norm=0.5), dict(type='AGC'), dict(clip_value=0.1)])
def test_zero_steps_with_the_bad_elements_set_to_zero(config, fused, spoil):
    spoilt, clean = make_params(), make_params()
    a, b = OPTIMIZERS['SGD'](spoilt, fused), OPTIMIZERS['SGD'](clean, fused)
    one = attach(a, {**config, 'nonfinite': 'zero'})
    attach(b, config)
    for step in range(3):
        set_grads(spoilt, gradients(step, spoil if step == 1 else None))
        set_grads(clean, gradients(step, 0.0 if step == 1 else None))
        a.step()
        b.step()
        assert one.stats()['nonfinite'] == (step == 1)
        assert math.isfinite(one.stats()['grad_norm'])
    assert equal([p.data for p in spoilt], [p.data for p in clean])


@pytest.mark.parametrize('fused', [False, True])
def test_raise_names_the_parameters_and_changes_nothing(fused):
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 4))
    optimizer = OPTIMIZERS['SGD'](model.parameters(), fused)
    handle = attach(optimizer, dict(max_norm=1.0, nonfinite='raise'), model=model)
    params = list(model.parameters())
    for p in params:
        p.grad = torch.ones_like(p)
    params[1].grad[0] = math.nan
    params[2].grad[1, 1] = -math.inf
    before = everything(params, optimizer, handle)
    grads = [p.grad.clone() for p in params]
    with pytest.raises(NonFiniteGradientError, match=r'step 0 in: 0\.bias, 1\.weight') as error:
        optimizer.step()
    assert 'skip' in str(error.value)
    assert equal(everything(params, optimizer, handle), before)
    assert equal([p.grad for p in params], grads)
    # With finite gradients the run continues.
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert handle.stats()['grad_norm'] == pytest.approx(math.sqrt(20))


def test_raise_lists_at_most_five_parameters():
    params = [nn.Parameter(torch.zeros(1)) for _ in range(9)]
    for p in params:
        p.grad = torch.full((1,), math.nan)
    optimizer = torch.optim.SGD(params, lr=0.1)
    attach(optimizer, dict(max_norm=1.0, nonfinite='raise'))
    with pytest.raises(NonFiniteGradientError, match='param_4 and 4 more'):
        optimizer.step()


def test_error_if_nonfinite_selects_the_policy_raise():
    params = make_params()
    optimizer = torch.optim.SGD(params, lr=0.1)
    handle = attach(optimizer, dict(max_norm=1.0, error_if_nonfinite=True, foreach=False))
    assert handle.engine.config.nonfinite == 'raise'
    set_grads(params, gradients(0, math.nan))
    with pytest.raises(NonFiniteGradientError):
        optimizer.step()


@pytest.mark.parametrize('spoil', [math.nan, math.inf])
@pytest.mark.parametrize('fused', [False, True])
def test_off_matches_torch(fused, spoil):
    ours, theirs = make_params(), make_params()
    a, b = OPTIMIZERS['SGD'](ours, fused), OPTIMIZERS['SGD'](theirs, fused)
    handle = attach(a, dict(max_norm=1.0, nonfinite='off'))
    for step in range(2):
        set_grads(ours, gradients(step, spoil if step else None))
        set_grads(theirs, gradients(step, spoil if step else None))
        a.step()
        torch.nn.utils.clip_grad_norm_(theirs, 1.0)
        b.step()
    for p, q in zip(ours, theirs, strict=True):
        assert torch.equal(p.isnan(), q.isnan())
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7, equal_nan=True)
    assert handle.stats()['nonfinite'] == 1


@pytest.mark.parametrize('policy', ['skip', 'zero', 'raise', 'off'])
@pytest.mark.parametrize('fused', [False, True])
def test_nonfinite_gradient_of_an_excluded_parameter_follows_the_policy(policy, fused):
    """The optimizer steps with excluded gradients too."""
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 4))
    optimizer = OPTIMIZERS['SGD'](model.parameters(), fused)
    handle = attach(optimizer, dict(max_norm=1.0, exclude=['^1'], nonfinite=policy), model=model)
    params = list(model.parameters())
    before = [p.detach().clone() for p in params]
    for p in params:
        p.grad = torch.ones_like(p)
    params[3].grad[0] = math.nan
    if policy == 'raise':
        with pytest.raises(NonFiniteGradientError, match=r'1\.bias'):
            optimizer.step()
        return
    optimizer.step()
    assert handle.stats()['nonfinite'] == 1
    if policy == 'skip':
        assert equal([p.data for p in params], before)
    elif policy == 'zero':
        assert params[3].detach()[0] == before[3][0] and all(p.isfinite().all() for p in params)
        assert not torch.equal(params[2].data, before[2])
    else:
        assert params[3].isnan().sum() == 1


def test_max_consecutive_skips_raises_only_for_skips_in_a_row():
    params = make_params()
    optimizer = torch.optim.SGD(params, lr=0.1)
    handle = attach(optimizer, dict(max_norm=1.0, max_consecutive_skips=3))
    for _ in range(4):
        # Two skips in a row are below the limit; a taken step resets the count.
        for step in range(2):
            set_grads(params, gradients(step, math.nan))
            optimizer.step()
        set_grads(params, gradients(0))
        optimizer.step()
    with pytest.raises(NonFiniteGradientError, match='3 steps in a row.*max_consecutive_skips=3'):
        for step in range(3):
            set_grads(params, gradients(step, math.inf))
            optimizer.step()
    assert all(p.grad is not None for p in params)
    assert handle.engine.skips.count == 3


def test_every_record_has_the_log_keys():
    params = make_params()
    optimizer = torch.optim.SGD(params, lr=0.1)
    handle = attach(optimizer, dict(max_norm=1.0))
    for spoil in (None, math.nan):
        set_grads(params, gradients(0, spoil))
        optimizer.step()
        assert tuple(handle.stats()) == LOG_KEYS
