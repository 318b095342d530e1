"""The engine on an optimizer: exceptions, closures, and parameters that are added or removed."""

import contextlib
import copy
import gc
import math
import weakref

import numpy as np
import pytest
import torch
from torch import nn

from gclip_mm import ClipConfigError, attach
from gclip_mm.clipping import GradClipEngine
from gclip_mm.clipping.rules.norm_clip import NormClip
from tests.clipping.cases import CASES, equal, make_optimizer
from tests.clipping.steps import Failure, fail, gradients, make_params, set_grads

CONFIG = dict(type='NormClip', max_norm=0.1)


def assert_clean(optimizer):
    assert not hasattr(optimizer, 'grad_scale') and not hasattr(optimizer, 'found_inf')


def clipped(grads, max_norm=0.1):
    norm = math.sqrt(sum(float((g.double() ** 2).sum()) for g in grads if g is not None))
    coef = min(1.0, max_norm / (norm + 1e-6))
    return [None if g is None else g * coef for g in grads]


# -- exceptions --------------------------------------------------------------------------------


@pytest.mark.parametrize('fused', [False, True])
@pytest.mark.parametrize('where', ['measure', 'clip'])
def test_failing_rule_changes_nothing_and_the_next_step_is_unaffected(where, fused, monkeypatch):
    params = make_params()
    optimizer = torch.optim.SGD(params, lr=0.1, momentum=0.9, fused=fused)
    attach(optimizer, CONFIG)
    before = [p.detach().clone() for p in params]
    set_grads(params, gradients(0))
    with monkeypatch.context() as patch:
        patch.setattr(NormClip, where, fail)
        with pytest.raises(Failure):
            optimizer.step()
    assert_clean(optimizer)
    assert equal([p.data for p in params], before) and not optimizer.state
    assert equal([p.grad for p in params], gradients(0))
    compare_next_step(params, optimizer, fused)


def compare_next_step(params, optimizer, fused):
    """Check that the step after a failure equals a step of an optimizer without the failure."""
    fresh = [nn.Parameter(p.detach().clone()) for p in params]
    other = torch.optim.SGD(fresh, lr=0.1, momentum=0.9, fused=fused)
    attach(other, CONFIG)
    for some in (params, fresh):
        set_grads(some, gradients(5))
    optimizer.step()
    other.step()
    assert equal([p.data for p in params], [p.data for p in fresh])
    assert_clean(optimizer)


def fails_unless_left_out(spoil):
    """A skipped step runs neither the optimizer nor later hooks, so it cannot fail."""
    return pytest.raises(Failure) if spoil is None else contextlib.nullcontext()


@pytest.mark.parametrize('spoil', [None, math.nan])
@pytest.mark.parametrize('fused', [False, True])
def test_failing_later_hook_leaves_the_next_step_unaffected(fused, spoil):
    """Torch does not report an aborted step; the engine must not carry it into the next one."""
    params = make_params()
    optimizer = torch.optim.SGD(params, lr=0.1, momentum=0.9, fused=fused)
    attach(optimizer, CONFIG)
    set_grads(params, gradients(0, spoil))
    hook = optimizer.register_step_pre_hook(fail)
    with fails_unless_left_out(spoil):
        optimizer.step()
    hook.remove()
    compare_next_step(params, optimizer, fused)


@pytest.mark.parametrize('spoil', [None, math.nan])
@pytest.mark.parametrize('fused', [False, True])
def test_failing_optimizer_kernel_leaves_the_next_step_unaffected(fused, spoil, monkeypatch):
    params = make_params()
    optimizer = torch.optim.SGD(params, lr=0.1, momentum=0.9, fused=fused)
    handle = attach(optimizer, CONFIG)
    set_grads(params, gradients(0, spoil))
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.SGD, '_init_group', fail)
        with fails_unless_left_out(spoil):
            optimizer.step()
    compare_next_step(params, optimizer, fused)
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.SGD, '_init_group', fail)
        set_grads(params, gradients(0, spoil))
        with fails_unless_left_out(spoil):
            optimizer.step()
    handle.remove()
    assert_clean(optimizer)
    assert all(p.grad is not None for p in params)


def test_new_gradients_replace_those_hidden_by_a_broken_step():
    params = make_params()
    optimizer = torch.optim.SGD(params, lr=0.1)
    step = optimizer.step
    attach(optimizer, CONFIG)
    hook = optimizer.register_step_pre_hook(fail)
    set_grads(params, gradients(0, math.nan))
    # A reference from before attaching bypasses the guard, so that gradients are hidden.
    with pytest.warns(UserWarning, match='Attach first'), pytest.raises(Failure):
        step()
    hook.remove()
    before = params[0].detach().clone()
    optimizer.zero_grad()
    params[0].grad = torch.ones(3, 2)
    optimizer.step()
    # The two parameters without a new gradient have none, not the old NaN.
    assert params[1].grad is None and params[2].grad is None
    want = before - 0.1 * 0.1 / math.sqrt(6)
    torch.testing.assert_close(params[0].detach(), want)


@pytest.mark.parametrize('fused', [False, True])
def test_failing_closure_leaves_the_next_step_unaffected(fused):
    params = make_params()
    optimizer = torch.optim.SGD(params, lr=0.1, momentum=0.9, fused=fused)
    attach(optimizer, CONFIG)
    set_grads(params, gradients(0))
    with pytest.raises(Failure):
        optimizer.step(fail)
    assert_clean(optimizer)
    assert equal([p.grad for p in params], gradients(0))
    compare_next_step(params, optimizer, fused)


def test_step_restores_existing_grad_scale_and_found_inf():
    params = make_params()
    optimizer = torch.optim.SGD(params, lr=0.1, fused=True)
    attach(optimizer, CONFIG)
    optimizer.grad_scale = None
    optimizer.found_inf = None
    set_grads(params, gradients(0))
    optimizer.step()
    assert optimizer.grad_scale is None and optimizer.found_inf is None


@pytest.mark.parametrize('policy', ['skip', 'raise'])
def test_clip_now_then_step_equals_a_plain_step(policy):
    params, direct = make_params(), make_params()
    a, b = (torch.optim.SGD(some, lr=0.1, momentum=0.9) for some in (params, direct))
    engine, handle = GradClipEngine(a, {**CONFIG, 'nonfinite': policy}), attach(b, CONFIG)
    for step in range(3):
        set_grads(params, gradients(step))
        set_grads(direct, gradients(step))
        engine.clip_now()
        assert equal([p.grad for p in params], clipped_like_torch(gradients(step)))
        a.step()
        b.step()
        assert engine.stats() == handle.stats() and engine.steps == step + 1
    before = [p.detach().clone() for p in params]
    set_grads(params, gradients(3, math.nan))
    if policy == 'raise':
        with pytest.raises(FloatingPointError):
            engine.clip_now()
    else:
        engine.clip_now()
        a.step()
    assert equal([p.data for p in params], before)
    # In either case, the next step clips again.
    for some in (params, direct):
        set_grads(some, gradients(4))
    a.step()
    b.step()
    assert equal([p.data for p in params], [p.data for p in direct])


def clipped_like_torch(grads):
    params = [nn.Parameter(torch.zeros_like(g)) for g in grads]
    set_grads(params, grads)
    torch.nn.utils.clip_grad_norm_(params, 0.1)
    return [p.grad for p in params]


# -- closures ----------------------------------------------------------------------------------


@pytest.mark.parametrize('how', ['position', 'keyword'])
@pytest.mark.parametrize('fused', [False, True])
def test_gradients_of_a_closure_are_clipped_like_torch(how, fused):
    params, reference = make_params(), make_params()
    a = torch.optim.SGD(params, lr=0.1, momentum=0.9, fused=fused)
    b = torch.optim.SGD(reference, lr=0.1, momentum=0.9, fused=fused)
    handle = attach(a, CONFIG)

    def closure():
        assert torch.is_grad_enabled()
        a.zero_grad()
        loss = sum((p * p).sum() for p in params)
        loss.backward()
        return loss

    for step in range(3):
        loss = a.step(closure) if how == 'position' else a.step(closure=closure)
        b.zero_grad()
        sum((p * p).sum() for p in reference).backward()
        torch.nn.utils.clip_grad_norm_(reference, 0.1)
        b.step()
        assert float(loss) > 0 and handle.engine.steps == step + 1
    for p, q in zip(params, reference, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize('line_search', [None, 'strong_wolfe'])
def test_lbfgs_matches_torch_clipping_inside_the_closure(line_search):
    """LBFGS calls its closure several times per step; each call must be clipped."""
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(1))
    y = torch.randn(20, 1, generator=torch.Generator().manual_seed(2))

    def train(ours):
        torch.manual_seed(0)
        net = nn.Linear(3, 1)
        optimizer = torch.optim.LBFGS(
            net.parameters(), lr=0.5, max_iter=5, line_search_fn=line_search
        )
        if ours:
            attach(optimizer, dict(max_norm=0.5))

        def closure():
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(net(x), y)
            loss.backward()
            if not ours:
                torch.nn.utils.clip_grad_norm_(net.parameters(), 0.5)
            return loss

        losses = [float(optimizer.step(closure)) for _ in range(4)]
        return [p.data for p in net.parameters()], losses

    ours, theirs = train(True), train(False)
    assert equal(ours[0], theirs[0]) and ours[1] == theirs[1]
    assert ours[1][-1] < ours[1][0]


def test_step_counts_once_when_its_closure_runs_several_times():
    p = nn.Parameter(torch.tensor([3.0, -4.0]))
    optimizer = torch.optim.LBFGS([p], lr=0.1, max_iter=4)
    schedule = dict(type='linear', start_factor=0.1, end=4)
    engine = attach(optimizer, dict(type='NormClip', max_norm=1.0, schedule=schedule)).engine
    asked, thresholds = [], []
    engine.on_record = lambda record: thresholds.append(round(record.tolist()[3], 6))

    def closure():
        optimizer.zero_grad()
        asked.append(engine.steps)
        # The loss changes in each call; otherwise LBFGS detects convergence and stops.
        loss = (p * (1 + len(asked))).square().sum()
        loss.backward()
        return loss

    for step in range(5):
        asked.clear(), thresholds.clear()
        optimizer.step(closure)
        assert len(asked) > 1 and engine.steps == step + 1
        factor = 0.1 + 0.9 * min(step, 3) / 3
        assert thresholds == [pytest.approx(factor)] * len(asked)


class Counting(torch.optim.SGD):
    """An optimizer whose `step` adds work and calls the step of its parent, as is common."""

    def step(self, closure=None):
        self.calls = getattr(self, 'calls', 0) + 1
        return super().step(closure)


@pytest.mark.parametrize('fused', [False, True])
@pytest.mark.parametrize('how', ['plain', 'closure'])
def test_nested_step_of_a_subclass_counts_once(fused, how):
    """PyTorch runs the hooks in both steps once the process has built an instance of the parent."""
    torch.optim.SGD(make_params(), lr=0.1)

    def run(kind):
        params = make_params()
        optimizer = kind(params, lr=0.1, momentum=0.9, fused=fused)
        handle = attach(optimizer, dict(type='AutoClip', percentile=40, window=5))
        records = []
        handle.engine.on_record = lambda record: records.append(record.tolist())
        for step in range(6):
            grads = gradients(step)

            def closure(grads=grads):
                set_grads(params, grads)
                return torch.zeros(())

            closure()
            optimizer.step(closure if how == 'closure' else None)
            assert_clean(optimizer)
        return params, records, handle.engine.steps

    params, records, steps = run(Counting)
    expected, expected_records, _ = run(torch.optim.SGD)
    assert steps == 6 and records == expected_records
    assert equal([p.data for p in params], [p.data for p in expected])


def test_failed_step_of_a_subclass_leaves_the_hooks_in_place():
    torch.optim.SGD(make_params(), lr=0.1)
    params = make_params()
    optimizer = Counting(params, lr=0.0)
    handle = attach(optimizer, CONFIG)
    set_grads(params, gradients(0))
    with pytest.raises(Failure):
        optimizer.step(fail)
    optimizer.step()
    for p, g in zip(params, clipped(gradients(0)), strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-5, atol=0)
    assert handle.engine.steps == 1


def test_copying_an_engine_without_its_optimizer_raises():
    handle = attach(torch.optim.SGD(make_params(), lr=0.1), CONFIG)
    with pytest.raises(TypeError, match='deepcopy'):
        copy.copy(handle.engine)


def test_lbfgs_skips_a_nonfinite_evaluation():
    p = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.LBFGS([p], lr=0.1, max_iter=3)
    handle = attach(optimizer, dict(max_norm=1.0))

    def closure():
        optimizer.zero_grad()
        (p.sum() * math.nan).backward()
        return p.sum()

    optimizer.step(closure)
    assert p.tolist() == [1, 1] and handle.stats()['nonfinite'] == 1
    assert p.grad.isnan().all()


# -- parameters that are added or removed ------------------------------------------------------


@pytest.mark.parametrize('fused', [False, True])
def test_group_added_later_is_clipped_with_the_others(fused):
    params, late = make_params(), make_params(1)
    optimizer = torch.optim.SGD(params, lr=0.0, fused=fused)
    handle = attach(optimizer, CONFIG)
    set_grads(params, gradients(0))
    optimizer.step()
    optimizer.add_param_group(dict(params=late, lr=0.0))
    set_grads(params + late, gradients(1) + gradients(2))
    want = clipped(gradients(1) + gradients(2))
    optimizer.step()
    for p, g in zip(params + late, want, strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-5, atol=0)
    assert [info.name for info in handle.engine.book.infos] == [f'param_{i}' for i in range(6)]


def test_group_added_later_follows_the_routes():
    model = nn.ModuleDict(dict(backbone=nn.Linear(2, 2), head=nn.Linear(2, 2)))
    optimizer = torch.optim.SGD(model.backbone.parameters(), lr=0.0)
    handle = attach(optimizer, dict(**CONFIG, exclude=[r'weight$']), model=model)
    optimizer.add_param_group(dict(params=list(model.head.parameters())))
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert [info.name for info in handle.engine.book.infos] == [
        'backbone.weight',
        'backbone.bias',
        'head.weight',
        'head.bias',
    ]
    for name, p in model.named_parameters():
        assert (p.grad == 1).all() == name.endswith('weight')
    assert handle.stats()['grad_norm'] == pytest.approx(math.sqrt(12))


def test_removed_group_is_no_longer_clipped():
    params = make_params()
    optimizer = torch.optim.SGD([dict(params=[p]) for p in params], lr=0.0)
    attach(optimizer, CONFIG)
    set_grads(params, gradients(0))
    optimizer.step()
    del optimizer.param_groups[1]
    grads = gradients(1)
    set_grads(params, grads)
    optimizer.step()
    want = clipped([grads[0], grads[2]])
    torch.testing.assert_close(params[0].grad, want[0])
    torch.testing.assert_close(params[2].grad, want[1])
    assert torch.equal(params[1].grad, grads[1])


def test_replaced_parameter_is_clipped_with_the_others():
    params = make_params()
    optimizer = torch.optim.SGD(params, lr=0.0)
    attach(optimizer, CONFIG)
    set_grads(params, gradients(0))
    optimizer.step()
    params[1] = optimizer.param_groups[0]['params'][1] = nn.Parameter(torch.zeros(3))
    set_grads(params, gradients(1))
    optimizer.step()
    for p, g in zip(params, clipped(gradients(1)), strict=True):
        torch.testing.assert_close(p.grad, g)


@pytest.mark.parametrize('fused', [False, True])
def test_parameters_frozen_later_match_torch(fused):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    reference = copy.deepcopy(model)
    a = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=fused)
    b = torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9, fused=fused)
    attach(a, CONFIG)
    x = torch.randn(4, 3)
    for step in range(4):
        if step == 2:
            model[0].requires_grad_(False)
            reference[0].requires_grad_(False)
        for net, optimizer in ((model, a), (reference, b)):
            optimizer.zero_grad()
            net(x).square().sum().backward()
        torch.nn.utils.clip_grad_norm_(reference.parameters(), 0.1)
        a.step()
        b.step()
    for p, q in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize('config', [CONFIG, dict(type='AGC'), dict(clip_value=0.01)])
def test_steps_with_missing_gradients_equal_those_of_a_new_optimizer(config):
    """More patterns of missing gradients than are cached; each is clipped as if it were alone."""
    params = make_params() + make_params(1)
    optimizer = torch.optim.SGD(params, lr=0.0)
    attach(optimizer, config)
    for step in range(1, 64):
        grads = gradients(step) + gradients(step + 100)
        grads = [g if (step >> i) & 1 else None for i, g in enumerate(grads)]
        set_grads(params, grads)
        optimizer.step()
        alone = [nn.Parameter(p.detach().clone()) for p in params]
        single = torch.optim.SGD(alone, lr=0.0)
        attach(single, config)
        set_grads(alone, grads)
        single.step()
        for p, q in zip(params, alone, strict=True):
            assert (p.grad is None and q.grad is None) or torch.equal(p.grad, q.grad)


def test_loading_the_optimizer_state_repeats_the_step_bit_identically():
    params = make_params()
    optimizer = torch.optim.SGD(params, lr=0.1, momentum=0.9, fused=True)
    attach(optimizer, CONFIG)
    set_grads(params, gradients(0))
    optimizer.step()
    weights = [p.detach().clone() for p in params]
    saved = copy.deepcopy(optimizer.state_dict())
    assert not {'grad_scale', 'found_inf', 'gclip'} & saved.keys()
    set_grads(params, gradients(1))
    optimizer.step()
    want = [p.detach().clone() for p in params]
    with torch.no_grad():
        for p, w in zip(params, weights, strict=True):
            p.copy_(w)
    optimizer.load_state_dict(saved)
    set_grads(params, gradients(1))
    optimizer.step()
    assert equal([p.data for p in params], want)


def test_model_cast_to_another_dtype_is_clipped_in_it():
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    handle = attach(optimizer, dict(type='AGC'), model=model)
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float32):
        model.to(dtype)
        optimizer.zero_grad()
        (model(torch.ones(1, 3, dtype=dtype)).sum() * 100).backward()
        optimizer.step()
        limit = 0.01 * model.weight.detach().double().norm(dim=1)
        norm = model.weight.grad.double().norm(dim=1)
        torch.testing.assert_close(norm, limit, rtol=1e-2, atol=0)
        assert math.isfinite(handle.stats()['grad_norm'])


def test_parameters_in_several_groups_share_one_norm():
    params = make_params()
    groups = [dict(params=params[:1], lr=0.0), dict(params=params[1:], lr=0.0, weight_decay=0.1)]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    attach(optimizer, CONFIG)
    set_grads(params, gradients(0))
    optimizer.step()
    for p, g in zip(params, clipped(gradients(0)), strict=True):
        torch.testing.assert_close(p.grad, g)


@pytest.mark.parametrize(
    'build',
    [
        lambda params: torch.optim.RMSprop(params, lr=0.01),
        lambda params: torch.optim.Rprop(params, lr=0.01),
        lambda params: torch.optim.NAdam(params, lr=0.01),
        lambda params: torch.optim.Adadelta(params),
        lambda params: torch.optim.Adam(params, lr=0.01, foreach=True),
        lambda params: torch.optim.Adam(params, lr=torch.tensor(0.01), capturable=False),
        lambda params: torch.optim.ASGD(params, lr=0.01),
        lambda params: torch.optim.SGD(params, lr=0.01, differentiable=False, foreach=True),
    ],
)
def test_any_optimizer_matches_torch_clipping_before_the_step(build):
    ours, theirs = make_params(), make_params()
    a, b = build(ours), build(theirs)
    attach(a, CONFIG)
    for step in range(4):
        set_grads(ours, gradients(step))
        set_grads(theirs, gradients(step))
        torch.nn.utils.clip_grad_norm_(theirs, 0.1)
        a.step()
        b.step()
    assert equal([p.data for p in ours], [p.data for p in theirs])


def test_sparse_and_complex_gradients_raise_and_are_named():
    model = nn.Sequential(nn.Embedding(5, 3, sparse=True))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attach(optimizer, CONFIG, model=model)
    model(torch.tensor([1])).sum().backward()
    with pytest.raises(ClipConfigError, match=r'0\.weight is sparse.*sparse=False'):
        optimizer.step()
    p = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    p.grad = torch.ones(2, dtype=torch.complex64)
    optimizer = torch.optim.SGD([p], lr=0.1)
    attach(optimizer, CONFIG)
    with pytest.raises(ClipConfigError, match='complex'):
        optimizer.step()


# -- removal -----------------------------------------------------------------------------------


def test_remove_restores_the_optimizer():
    params = make_params()
    optimizer = torch.optim.SGD(params, lr=0.1, fused=True)
    before = {key for key in vars(optimizer) if not key.startswith('_')}
    with attach(optimizer, CONFIG) as handle:
        set_grads(params, gradients(0))
        optimizer.step()
    assert {key for key in vars(optimizer) if not key.startswith('_')} == before
    assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks
    weights = [p.detach().clone() for p in params]
    set_grads(params, gradients(1))
    optimizer.step()
    for p, w, g in zip(params, weights, gradients(1), strict=True):
        torch.testing.assert_close(p.detach(), w - 0.1 * g)
    handle.remove()


def test_engine_does_not_keep_the_optimizer_alive():
    params = make_params()
    optimizer = torch.optim.SGD(params, lr=0.1)
    attach(optimizer, dict(type='AGC'))
    set_grads(params, gradients(0))
    optimizer.step()
    dead = weakref.ref(optimizer)
    del optimizer
    gc.collect()
    assert dead() is None


def test_attaching_twice_raises_until_the_first_is_removed():
    """Otherwise, running a notebook cell twice would clip twice without notice."""
    params = make_params()
    optimizer = torch.optim.SGD(params, lr=0.1)
    handle = attach(optimizer, CONFIG)
    with pytest.raises(ClipConfigError, match=r'clipped already.*remove\(\).*ChainClip'):
        attach(optimizer, dict(type='AGC'))
    handle.remove()
    attach(optimizer, dict(type='AGC'))


def test_failed_attach_leaves_no_hook_on_the_optimizer():
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for config in (dict(max_norm=-1), dict(max_norm=1, exclude=['nowhere'])):
        with pytest.raises(ClipConfigError):
            attach(optimizer, config, model=model)
    assert not optimizer._optimizer_step_pre_hooks


def test_lr_schedulers_work_as_with_torch_clipping():
    params, reference = make_params(), make_params()
    a, b = torch.optim.SGD(params, lr=0.1), torch.optim.SGD(reference, lr=0.1)
    attach(a, CONFIG)
    schedules = [torch.optim.lr_scheduler.StepLR(x, step_size=1, gamma=0.5) for x in (a, b)]
    for step in range(3):
        set_grads(params, gradients(step))
        set_grads(reference, gradients(step))
        torch.nn.utils.clip_grad_norm_(reference, 0.1)
        for optimizer, schedule in zip((a, b), schedules, strict=True):
            optimizer.step()
            schedule.step()
    assert equal([p.data for p in params], [p.data for p in reference])


def test_gradients_with_a_graph_are_clipped():
    """Second-order training leaves gradients that themselves require a gradient."""
    p = nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = torch.optim.SGD([p], lr=0.1)
    attach(optimizer, dict(max_norm=1.0))
    (p**2).sum().backward(create_graph=True)
    optimizer.step()
    np.testing.assert_allclose(p.detach().numpy(), [3 - 0.06, 4 - 0.08], rtol=1e-6)


@pytest.mark.parametrize('value', [1.0, math.nan], ids=['finite', 'not finite'])
@pytest.mark.parametrize('name', CASES)
def test_zero_grad_frees_the_gradients(name, value):
    """The memory must be free for the next forward pass, which has the peak use."""
    params = make_params()
    optimizer = make_optimizer(CASES[name], params)
    with attach(optimizer, CASES[name]):
        for _ in range(2):
            set_grads(params, [torch.full_like(p, value) for p in params])
            optimizer.step()
        kept = [weakref.ref(p.grad) for p in params]
        optimizer.zero_grad()
        assert [ref() for ref in kept] == [None] * 3
