"""Mixed precision on a CPU: GClipAmpOptimWrapper against a plain torch loop."""

import copy
import io
import math

import pytest
import torch
from mmengine.logging import MessageHub
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from torch import nn

from gclip_mm import GClipAmpOptimWrapper, NonFiniteGradientError
from gclip_mm.compat import SCALES_ON_CPU
from tests.clipping.cases import CASES, equal, make_optimizer
from tests.clipping.steps import Failure, fail, gradients, make_params, set_grads

NEEDS_SCALER = pytest.mark.skipif(
    not SCALES_ON_CPU, reason='this PyTorch does not have a loss scaler on a CPU'
)


@pytest.fixture(autouse=True)
def hub(request):
    """A message hub of the test's own, as a runner makes one."""
    return MessageHub.get_instance(request.node.nodeid)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Linear(4, 6)
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        return self.head(self.backbone(x).tanh())


def batch(step):
    return torch.randn(8, 4, generator=torch.Generator().manual_seed(step))


def train(wrapper, model, steps=6, start=0, size=lambda step: 1.0):
    for step in range(start, start + steps):
        with wrapper.optim_context(model):
            loss = (model(batch(step)).float() * size(step)).square().sum()
        wrapper.update_params(loss)


def by_hand(model, optimizer, scaler, dtype, max_norm, steps=6, size=lambda step: 1.0):
    """The loop of torch's documentation: unscale, clip, step, update."""
    norms = []
    for step in range(steps):
        with torch.autocast('cpu', dtype=dtype):
            loss = (model(batch(step)).float() * size(step)).square().sum()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)))
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    return norms


def spike(step):
    """The loss scale overflows in some steps; the unscaled gradients stay finite."""
    return 1e18 if step in (0, 3) else 1.0


@pytest.mark.parametrize('fused', [False, True])
@pytest.mark.parametrize('dtype', ['bfloat16', 'float16', None])
@pytest.mark.parametrize('name', ['SGD', 'AdamW'])
def test_amp_matches_a_plain_torch_loop(name, dtype, fused, hub):
    ours, theirs = Net(), Net()
    a = getattr(torch.optim, name)(ours.parameters(), lr=0.01, fused=fused)
    b = getattr(torch.optim, name)(theirs.parameters(), lr=0.01, fused=fused)
    options = dict(init_scale=2.0**10, growth_interval=3)
    wrapper = GClipAmpOptimWrapper(options, dtype=dtype, optimizer=a, clip_grad=dict(max_norm=0.5))
    train(wrapper, ours, size=spike)
    scaler = torch.amp.GradScaler('cpu', **options)
    # bfloat16 is the default of torch's autocast on a CPU.
    norms = by_hand(theirs, b, scaler, getattr(torch, dtype or 'bfloat16'), 0.5, size=spike)
    assert wrapper.loss_scaler.get_scale() == scaler.get_scale() < 2.0**10
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0 if not fused else 1e-6, atol=1e-8 if fused else 0)
    logged = hub.get_scalar('train/grad_norm').data[0].tolist()
    bad = hub.get_scalar('train/nonfinite').data[0].tolist()
    assert bad == [1, 0, 0, 1, 0, 0]
    for step, (mine, hand) in enumerate(zip(logged, norms, strict=True)):
        if bad[step]:
            assert not math.isfinite(mine) and not math.isfinite(hand)
        else:
            assert mine == pytest.approx(hand, rel=1e-6 if fused else 0)


@pytest.mark.parametrize('fused', [False, True])
@pytest.mark.parametrize('case', CASES)
def test_overflow_leaves_rule_state_unchanged(case, fused, request):
    config = CASES[case]

    def run(sizes):
        MessageHub.get_instance(f'{request.node.nodeid} {len(sizes)}')
        model = Net()
        optimizer = make_optimizer(config, model.parameters(), fused=fused)
        wrapper = GClipAmpOptimWrapper(
            dict(init_scale=2.0**10, growth_interval=100), optimizer=optimizer, clip_grad=config
        )
        for step, size in sizes:
            train(wrapper, model, 1, start=step, size=lambda _, size=size: size)
        return model, wrapper

    good = [(0, 1.0), (1, 1.0), (2, 1.0)]
    model, wrapper = run(good)
    spoilt, other = run([(7, 1e18), good[0], (8, 1e18), *good[1:]])
    # The scale differs by a power of two, which leaves these numbers bit-identical.
    for p, q in zip(spoilt.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-8)
    mine, theirs = other.engine.state_dict(), wrapper.engine.state_dict()
    assert wrapper.engine.stats() == pytest.approx(other.engine.stats(), rel=1e-5, nan_ok=True)
    assert mine['steps'] == 5 and theirs['steps'] == 3
    assert mine['consecutive_skips'] == 0
    for one, two in zip(mine['routes'], theirs['routes'], strict=True):
        assert_close(one['state'], two['state'])


def assert_close(a, b):
    if isinstance(a, torch.Tensor):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_close(a[key], b[key])
    elif isinstance(a, list):
        for x, y in zip(a, b, strict=True):
            assert_close(x, y)
    else:
        assert a == b


def test_loss_scale_accepts_what_stock_accepts():
    def scaler(loss_scale):
        optimizer = torch.optim.SGD(make_params(), lr=0.1)
        wrapper = GClipAmpOptimWrapper(loss_scale, optimizer=optimizer)
        return wrapper.loss_scaler, wrapper._scale_update_param

    dynamic, update = scaler('dynamic')
    assert isinstance(dynamic, torch.amp.GradScaler) and update is None
    static, update = scaler(512.0)
    assert static.get_scale() == 512.0 and update == 512.0
    custom, update = scaler(dict(init_scale=4.0, growth_factor=3.0))
    assert custom.get_scale() == 4.0 and custom.get_growth_factor() == 3.0 and update is None
    for wrong in ('unknown', 512, None):
        with pytest.raises(TypeError, match='loss_scale must be of type float'):
            scaler(wrong)


def test_dtype_is_checked_and_used():
    params = make_params()

    def build(dtype):
        return GClipAmpOptimWrapper(dtype=dtype, optimizer=torch.optim.SGD(params, lr=0.1))

    model = Net()
    for dtype, expected in [
        (None, torch.bfloat16),
        ('bfloat16', torch.bfloat16),
        (torch.float16, torch.float16),
    ]:
        with build(dtype).optim_context(model):
            assert model(batch(0)).dtype == expected
    with pytest.raises(ValueError, match="dtype should be any of .*'bfloat16'.*got 'bf16'"):
        build('bf16')
    with pytest.raises(TypeError, match='dtype should be None'):
        build(16)


@NEEDS_SCALER
def test_static_loss_scale_does_not_change():
    model = Net()
    wrapper = GClipAmpOptimWrapper(
        256.0,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
        clip_grad=dict(max_norm=0.5),
    )
    train(wrapper, model, 4, size=spike)
    assert wrapper.loss_scaler.get_scale() == 256.0


def test_scaler_skips_a_nan_under_every_policy(hub):
    """The skipped step is logged."""
    for policy in ('skip', 'zero', 'raise'):
        for fused in (False, True):
            params = make_params()
            optimizer = torch.optim.SGD(params, lr=0.1, momentum=0.9, fused=fused)
            wrapper = GClipAmpOptimWrapper(
                optimizer=optimizer, clip_grad=dict(max_norm=1.0, nonfinite=policy)
            )
            before = [p.detach().clone() for p in params]
            wrapper.loss_scaler.scale(torch.zeros((), requires_grad=True))
            set_grads(params, gradients(0, math.nan))
            wrapper.step()
            assert equal([p.data for p in params], before)
            assert not any(bool(state) for state in optimizer.state.values())
            assert hub.get_scalar('train/nonfinite').current() == 1


def test_disabled_scaler_leaves_nonfinite_policy_in_effect():
    params = make_params()
    wrapper = GClipAmpOptimWrapper(
        dict(enabled=False),
        optimizer=torch.optim.SGD(params, lr=0.1),
        clip_grad=dict(max_norm=1.0, nonfinite='raise'),
    )
    set_grads(params, gradients(0, math.nan))
    with pytest.raises(NonFiniteGradientError):
        wrapper.step()


def test_step_without_gradients_is_not_an_overflow(hub):
    params = make_params()
    wrapper = GClipAmpOptimWrapper(
        optimizer=torch.optim.SGD(params, lr=0.1, fused=True), clip_grad=dict(max_norm=1.0)
    )
    wrapper.loss_scaler.scale(torch.zeros((), requires_grad=True))
    wrapper.loss_scaler.update = lambda *args: None
    wrapper.step()
    assert 'train/nonfinite' not in hub.log_scalars


@pytest.mark.parametrize('fused', [False, True])
@pytest.mark.parametrize('where', ['hook', 'kernel'])
def test_failed_step_leaves_optimizer_clean(where, fused, monkeypatch):
    """After a failed step torch's scaler leaves its attributes on a fused optimizer."""
    params, fresh = make_params(), make_params()
    wrappers = []
    for some in (params, fresh):
        optimizer = torch.optim.SGD(some, lr=0.1, momentum=0.9, fused=fused)
        wrappers.append(
            GClipAmpOptimWrapper(
                dict(init_scale=8.0), optimizer=optimizer, clip_grad=dict(max_norm=0.1)
            )
        )
        wrappers[-1].loss_scaler.scale(torch.zeros((), requires_grad=True))
    set_grads(params, [g * 8 for g in gradients(0)])
    optimizer = wrappers[0].optimizer
    with monkeypatch.context() as patch:
        if where == 'kernel':
            patch.setattr(torch.optim.SGD, '_init_group', fail)
        else:
            hook = optimizer.register_step_pre_hook(fail)
        with pytest.raises(Failure):
            wrappers[0].step()
    if where == 'hook':
        hook.remove()
    assert not hasattr(optimizer, 'grad_scale') and not hasattr(optimizer, 'found_inf')
    # After an error a scaler needs an update() before it unscales again.
    wrappers[0].loss_scaler.update()
    for some, wrapper in zip((params, fresh), wrappers, strict=True):
        set_grads(some, [g * 8 for g in gradients(1)])
        wrapper.step()
    assert equal([p.data for p in params], [p.data for p in fresh])


def test_resume(request):
    def build(name):
        MessageHub.get_instance(f'{request.node.nodeid} {name}')
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        wrapper = GClipAmpOptimWrapper(
            dict(init_scale=2.0**10, growth_interval=2),
            optimizer=optimizer,
            clip_grad=dict(type='AdaGC', warmup_steps=2, beta=0.9),
        )
        return model, wrapper

    whole, wrapper = build('whole')
    train(wrapper, whole, 8, size=spike)
    first, first_wrapper = build('first')
    train(first_wrapper, first, 4, size=spike)
    file = io.BytesIO()
    torch.save([first.state_dict(), first_wrapper.state_dict()], file)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    assert {'gclip', 'loss_scaler'} <= state.keys()
    second, second_wrapper = build('second')
    second.load_state_dict(weights)
    second_wrapper.load_state_dict(copy.deepcopy(state))
    train(second_wrapper, second, 4, start=4, size=spike)
    assert equal(dict(second.state_dict()), dict(whole.state_dict()))
    assert second_wrapper.loss_scaler.state_dict() == wrapper.loss_scaler.state_dict()
    # A stock wrapper without a loss scale loads it too.
    OptimWrapper(torch.optim.SGD(Net().parameters(), lr=0.1)).load_state_dict(
        {key: value for key, value in state.items() if key != 'loss_scaler'}
    )


@NEEDS_SCALER
def test_overflow_skips_the_whole_accumulated_step():
    """The inf stays in the sum, as with stock MMEngine."""
    model = Net()
    wrapper = GClipAmpOptimWrapper(
        dict(init_scale=2.0**10),
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
        accumulative_counts=3,
        clip_grad=dict(max_norm=0.5),
    )
    before = copy.deepcopy(model.state_dict())
    train(wrapper, model, 3, size=lambda step: 1e18 if step == 1 else 1.0)
    assert equal(dict(model.state_dict()), dict(before))
    train(wrapper, model, 3)
    assert not equal(dict(model.state_dict()), dict(before))
    assert wrapper.engine.steps == 2


def test_wrapper_subclasses_the_stock_amp_wrapper():
    assert issubclass(GClipAmpOptimWrapper, AmpOptimWrapper)


@pytest.mark.parametrize('fused', [False, True])
def test_run_ends_if_the_scaler_skips_every_step(fused):
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, fused=fused)
    wrapper = GClipAmpOptimWrapper(
        optimizer=optimizer, clip_grad=dict(max_norm=1.0, max_consecutive_skips=5)
    )
    # Steps that a scaler skips while it searches for its scale do not count.
    train(wrapper, model, 12, size=lambda step: 1.0 if step % 5 == 4 else math.inf)
    assert wrapper.engine.skips.count == 2
    with pytest.raises(NonFiniteGradientError, match='5 steps in a row.*loss scaler'):
        train(wrapper, model, 12, size=lambda step: math.nan)
    assert wrapper.engine.skips.count == 5
    assert not hasattr(optimizer, 'grad_scale') and not hasattr(optimizer, 'found_inf')


@pytest.mark.parametrize('spoil', [False, True])
@pytest.mark.parametrize('fused', [False, True])
def test_clip_before_the_step_is_recorded_once(fused, spoil, hub):
    """``_clip_grad`` is a method of the stock wrapper that other code may call too."""
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, fused=fused)
    wrapper = GClipAmpOptimWrapper(optimizer=optimizer, clip_grad=dict(max_norm=0.1))
    before = model.head.weight.detach().clone()
    for step in range(3):
        with wrapper.optim_context(model):
            loss = model(batch(step)).float().square().sum() * (math.inf if spoil else 1)
        wrapper.backward(loss)
        wrapper.loss_scaler.unscale_(optimizer)
        wrapper._clip_grad()
        wrapper.step()
        wrapper.zero_grad()
    assert torch.equal(model.head.weight, before) == spoil
    assert hub.get_scalar('train/nonfinite').data[0].tolist() == [float(spoil)] * 3
    assert wrapper.engine.steps == 3 and not wrapper.engine.is_clipped
