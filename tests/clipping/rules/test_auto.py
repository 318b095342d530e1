"""``Auto``: no threshold; the bound comes from the optimizer's own learning rate and momentum."""

import copy
import math

import pytest
import torch
from torch import nn

from gclip_mm.clipping import ClipConfigError, attach, parse_clip_grad
from gclip_mm.clipping.gradients.movement import CopiedMovement, StateMovement, movement_of
from gclip_mm.clipping.gradients.norm_layers import followers, is_live
from gclip_mm.clipping.rules.auto import is_proportional
from tests.clipping.cases import equal

AUTO = dict(type='Auto')
REACH, TOTAL = 0.05, 0.3


def make_net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.ConvTranspose2d(6, 4, 3),
        nn.GroupNorm(2, 4),
        nn.Flatten(),
        nn.Linear(4 * 64, 5),
        nn.ReLU(),
        nn.Linear(5, 2),
    )


def units_of(name, tensor):
    """The units of a parameter of the model as the rows of a matrix."""
    if tensor.ndim == 1:
        return tensor.reshape(1, -1)
    if name == '3.weight':
        tensor = tensor.transpose(0, 1)
    return tensor.reshape(tensor.shape[0], -1)


def sizes_of(name, weight, loose=()):
    norms = units_of(name, weight.detach().double()).norm(dim=1)
    floor = math.sqrt(weight.numel()) if weight.ndim == 1 else 1.5 if name in loose else 0.01
    return norms.clamp(min=floor)


def by_hand(net, gains, loose):
    """The clipped gradients by the documented formula, in float64."""
    params = dict(net.named_parameters())
    steps, sizes, total = {}, {}, 0.0
    for name, param in params.items():
        rows = units_of(name, param.grad.double())
        steps[name] = gains[name] * rows.norm(dim=1)
        sizes[name] = sizes_of(name, param, loose)
        if name in loose and param.ndim > 1:
            total += float(steps[name].norm() / sizes[name].norm())
    shrink = min(1.0, TOTAL / total) if total else 1.0
    out = {}
    for name, param in params.items():
        coef = (REACH * sizes[name] / steps[name]).clamp(max=shrink if name in loose else 1.0)
        coef = torch.where(steps[name] > 0, coef, 1.0)
        rows = units_of(name, param.grad.double()) * coef[:, None]
        if name == '3.weight':
            out[name] = rows.reshape(4, 6, 3, 3).transpose(0, 1)
        else:
            out[name] = rows.reshape(param.shape)
    return out


LOOSE = ('6.weight', '6.bias', '8.weight', '8.bias')


def backward(net, size=1.0, seed=0):
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(4, 3, 8, 8, generator=rng)
    net.zero_grad()
    (net(x).square().mean() * size).backward()


@pytest.mark.parametrize('size', [1e-3, 1.0, 1e3, 1e12])
@pytest.mark.parametrize(
    ('options', 'gain'),
    [
        (dict(lr=0.1), 0.1),
        (dict(lr=0.1, momentum=0.9), 1.0),
        (dict(lr=0.1, momentum=0.9, nesterov=True), 1.0),
        (dict(lr=0.1, momentum=0.9, dampening=0.5), 0.5),
    ],
    ids=['plain', 'momentum', 'nesterov', 'dampening'],
)
def test_auto_clips_by_the_documented_formula(options, gain, size):
    net = make_net()
    optimizer = torch.optim.SGD(net.parameters(), **options)
    attach(optimizer, AUTO, model=net)
    backward(net, size)
    want = by_hand(net, {name: gain for name, _ in net.named_parameters()}, LOOSE)
    optimizer.step()
    for name, param in net.named_parameters():
        torch.testing.assert_close(param.grad.double(), want[name], rtol=1e-5, atol=1e-30)


def test_bound_uses_the_peak_learning_rate_of_each_group():
    net = make_net()
    rates = dict(zip((name for name, _ in net.named_parameters()), (0.1, 1, 10, 0), strict=False))
    groups = [
        dict(params=[p], lr=rates.get(name, 0.5) / 4, initial_lr=rates.get(name, 0.5))
        for name, p in net.named_parameters()
    ]
    optimizer = torch.optim.SGD(groups, lr=1.0, momentum=0.5)
    attach(optimizer, AUTO, model=net)
    backward(net, 1e3)
    gains = {name: rates.get(name, 0.5) / 0.5 for name, _ in net.named_parameters()}
    want = by_hand(net, gains, LOOSE)
    optimizer.step()
    for name, param in net.named_parameters():
        torch.testing.assert_close(param.grad.double(), want[name], rtol=1e-5, atol=1e-30)


def test_clipped_step_scales_with_the_scheduled_learning_rate():
    """At a tenth of the peak rate, a clipped unit moves a tenth as far."""
    moved = []
    for rate in (1.0, 0.1):
        net = make_net()
        optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
        optimizer.param_groups[0].update(initial_lr=1.0, lr=rate)
        attach(optimizer, AUTO, model=net)
        before = net[0].weight.detach().clone()
        backward(net, 1e6)
        optimizer.step()
        moved.append((net[0].weight.detach() - before).norm())
    torch.testing.assert_close(moved[0], 10 * moved[1], rtol=1e-4, atol=0)


def test_weight_before_a_frozen_batch_norm_counts_in_the_total():
    net = make_net()
    assert set(followers(net)) == {id(net[0]), id(net[3])}
    assert is_live(followers(net)[id(net[0])])
    net[1].eval()
    assert not is_live(followers(net)[id(net[0])]) and is_live(followers(net)[id(net[3])])
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    attach(optimizer, AUTO, model=net)
    for frozen in (True, False, True):
        net[1].train(not frozen)
        backward(net, 1e3)
        loose = (*LOOSE, '0.weight', '1.weight', '1.bias') if frozen else LOOSE
        want = by_hand(net, {name: 1.0 for name, _ in net.named_parameters()}, loose)
        optimizer.step()
        for name, param in net.named_parameters():
            torch.testing.assert_close(param.grad.double(), want[name], rtol=1e-5, atol=1e-30)


def test_layers_without_a_norm_layer_keep_the_joint_direction():
    net = nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(40)))
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    attach(optimizer, AUTO, model=net)
    grads = []
    for param in net.parameters():
        # Each step alone is within the bound; their total is not.
        param.grad = torch.randn(4, 4) * 0.01
        grads.append(param.grad.clone())
    optimizer.step()
    ratios = [(p.grad / g).flatten() for p, g in zip(net.parameters(), grads, strict=True)]
    ratio = torch.cat(ratios)
    torch.testing.assert_close(ratio, ratio[0].expand_as(ratio))
    assert ratio[0] < 1


def test_small_steps_are_bit_identical_to_no_clipping():
    nets = [make_net(), make_net()]
    optimizers = [torch.optim.SGD(net.parameters(), lr=1e-6, momentum=0.9) for net in nets]
    handle = attach(optimizers[0], AUTO, model=nets[0])
    for step in range(3):
        for net, optimizer in zip(nets, optimizers, strict=True):
            backward(net, seed=step)
            optimizer.step()
    assert equal(dict(nets[0].state_dict()), dict(nets[1].state_dict()))
    assert handle.stats()['clip_fraction'] == 0


ADAPTIVE = {
    'AdamW': lambda params, lr: torch.optim.AdamW(params, lr=lr),
    'AdamW fused': lambda params, lr: torch.optim.AdamW(params, lr=lr, fused=True),
    'Adam': lambda params, lr: torch.optim.Adam(params, lr=lr, amsgrad=True),
    'RAdam': lambda params, lr: torch.optim.RAdam(params, lr=lr),
    'NAdam': lambda params, lr: torch.optim.NAdam(params, lr=lr),
    'Adamax': lambda params, lr: torch.optim.Adamax(params, lr=lr),
    'RMSprop': lambda params, lr: torch.optim.RMSprop(params, lr=lr, momentum=0.9),
    'Adagrad': lambda params, lr: torch.optim.Adagrad(params, lr=lr),
    'Adadelta': lambda params, lr: torch.optim.Adadelta(params, lr=lr),
}
if hasattr(torch.optim, 'Adafactor'):
    # Since torch 2.5.
    ADAPTIVE['Adafactor'] = lambda params, lr: torch.optim.Adafactor(params, lr=lr)


@pytest.mark.parametrize('name', ADAPTIVE)
def test_update_of_other_optimizers_is_bounded(name):
    net = make_net()
    optimizer = ADAPTIVE[name](net.parameters(), 1.0)
    assert not is_proportional(optimizer)
    attach(optimizer, AUTO, model=net)
    # Without a copy the weights before the step are known up to the rounding of the movement, which
    # is a thousand times the bound here.
    slack = 1e-3 if name.startswith('Ada') else 1e-4
    for step in range(4):
        before = {n: p.detach().clone() for n, p in net.named_parameters()}
        backward(net, 10.0**step, seed=step)
        optimizer.step()
        total = 0.0
        for n, param in net.named_parameters():
            moved = units_of(n, (param.detach() - before[n]).double()).norm(dim=1)
            sizes = sizes_of(n, before[n], LOOSE)
            assert (moved <= 0.2 * REACH * sizes * (1 + slack)).all(), n
            if n in LOOSE and param.ndim > 1:
                total += float(moved.norm() / sizes.norm())
        assert total <= 0.2 * TOTAL * (1 + slack)


#: The movement of these follows from their state.
BY_STATE = {
    'AdamW': lambda params: torch.optim.AdamW(params, lr=0.1, weight_decay=0.3),
    'AdamW fused': lambda params: torch.optim.AdamW(params, lr=0.1, fused=True, amsgrad=True),
    'Adam': lambda params: torch.optim.Adam(params, lr=0.1, weight_decay=0.3),
    'Adam maximize': lambda params: torch.optim.Adam(params, lr=0.1, maximize=True, amsgrad=True),
    'Adam one by one': lambda params: torch.optim.Adam(params, lr=0.1, foreach=False),
    'Adamax': lambda params: torch.optim.Adamax(params, lr=0.1, weight_decay=0.3),
}


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('name', BY_STATE)
def test_movement_from_the_state_equals_the_difference_to_a_copy(name, dtype):
    net = make_net().to(dtype)
    params = list(net.parameters())
    optimizer = BY_STATE[name](params)
    movement = movement_of(optimizer, params, [optimizer.param_groups[0]] * len(params), {})
    assert isinstance(movement, StateMovement)
    copied = CopiedMovement(params, {})
    places = list(range(len(params)))
    for step in range(4):
        for param in params:
            param.grad = torch.randn_like(param) * 10.0**step
        for each in (movement, copied):
            each.start(params)
        optimizer.step()
        found, expected = movement.of(places), copied.of(places)
        for i in places:
            exact = dtype == torch.float64
            tolerance = dict(rtol=1e-9, atol=1e-12) if exact else dict(rtol=1e-3, atol=1e-6)
            torch.testing.assert_close(found[i], expected[i], **tolerance)
            torch.testing.assert_close(movement.old(i, found[i]), copied.old(i, expected[i]))


@pytest.mark.parametrize('kind', [torch.optim.Adam, torch.optim.AdamW])
def test_class_with_a_step_of_its_own_is_copied(kind):
    class Mine(kind):
        def step(self, closure=None):
            return super().step(closure)

    params = list(make_net().parameters())
    optimizer = Mine(params, lr=0.1)
    groups = [optimizer.param_groups[0]] * len(params)
    assert isinstance(movement_of(optimizer, params, groups, {}), CopiedMovement)


def test_views_share_one_copy_of_the_weights():
    net = make_net()
    optimizer = torch.optim.RAdam(net.parameters(), lr=1e-3)
    handle = attach(optimizer, AUTO, model=net)
    params = list(net.parameters())
    for missing in (None, *params[:3]):
        backward(net)
        if missing is not None:
            missing.grad = None
        optimizer.step()
    rule = handle.engine.config.outer
    assert len(rule._views) == 4
    assert sum(copy.numel() for copy in rule._memory.values()) == sum(p.numel() for p in params)
    copies = {id(c) for known in rule._views.values() for c in known.movement._copies}
    assert len(copies) == len(params)


@pytest.mark.parametrize('name', ['AdamW', 'RAdam'])
def test_stats_tell_of_the_update(name):
    net = make_net()
    optimizer = ADAPTIVE[name](net.parameters(), 1.0)
    handle = attach(optimizer, AUTO, model=net)
    before = [p.detach().clone() for p in net.parameters()]
    backward(net)
    optimizer.step()
    stats = handle.stats()
    assert stats['clip_fraction'] == 1.0
    moved = [p.detach() - b for p, b in zip(net.parameters(), before, strict=True)]
    norm = float(torch.cat([m.flatten().double() for m in moved]).norm())
    assert norm == pytest.approx(min(norm, stats['clip_threshold']), rel=1e-4)
    assert 0 < stats['clip_coef'] < 1
    assert stats['grad_norm_post'] == stats['grad_norm']


@pytest.mark.parametrize('name', ADAPTIVE)
def test_small_updates_are_bit_identical_to_no_clipping(name):
    nets = [make_net(), make_net()]
    # Adadelta and Adafactor set their own step size; a tiny rate keeps all steps within the bound.
    optimizers = [ADAPTIVE[name](net.parameters(), 1e-7) for net in nets]
    attach(optimizers[0], AUTO, model=nets[0])
    for step in range(3):
        for net, optimizer in zip(nets, optimizers, strict=True):
            backward(net, seed=step)
            optimizer.step()
    assert equal(dict(nets[0].state_dict()), dict(nets[1].state_dict()))


@pytest.mark.parametrize('name', ['AdamW', 'AdamW fused'])
def test_run_with_a_skipped_step_is_bit_identical_to_one_without(name):
    nets = [make_net(), make_net()]
    optimizers = [ADAPTIVE[name](net.parameters(), 1.0) for net in nets]
    for net, optimizer in zip(nets, optimizers, strict=True):
        attach(optimizer, AUTO, model=net)
    for step in range(4):
        for k, (net, optimizer) in enumerate(zip(nets, optimizers, strict=True)):
            if step == 2 and k == 0:
                continue
            backward(net, math.nan if step == 2 else 1.0, seed=step)
            optimizer.step()
    assert equal(dict(nets[0].state_dict()), dict(nets[1].state_dict()))
    assert equal(optimizers[0].state_dict(), optimizers[1].state_dict())


def test_side_can_be_set_and_unsupported_sides_raise():
    net = make_net()
    adam = torch.optim.AdamW(net.parameters())
    with pytest.raises(ClipConfigError, match="side='update'"):
        attach(adam, dict(type='Auto', side='gradient'), model=net)
    with pytest.raises(ClipConfigError, match='side must be one of'):
        parse_clip_grad(dict(type='Auto', side='both'))
    sgd = torch.optim.SGD(net.parameters(), lr=100.0)
    attach(sgd, dict(type='Auto', side='update'), model=net)
    before = net[0].weight.detach().clone()
    backward(net, 1e3)
    grad = net[0].weight.grad.clone()
    sgd.step()
    assert torch.equal(net[0].weight.grad, grad)
    moved = (net[0].weight.detach() - before).flatten(1).norm(dim=1)
    torch.testing.assert_close(
        moved.double(), 0.2 * REACH * sizes_of('0.weight', before), rtol=1e-4, atol=0
    )


def test_auto_clips_without_a_model_and_after_a_deepcopy():
    net = make_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    handle = attach(optimizer, AUTO)
    backward(net, 1e3)
    with pytest.warns(UserWarning, match='does not know the model'):
        optimizer.step()
    assert handle.stats()['clip_fraction'] > 0
    handle.remove()
    handle = attach(optimizer, AUTO, model=net)
    engine, twin = copy.deepcopy((handle.engine, net))
    for model, opt in ((net, optimizer), (twin, engine.optimizer)):
        backward(model, 1e3, seed=5)
        opt.step()
    assert equal(dict(net.state_dict()), dict(twin.state_dict()))


@pytest.mark.parametrize('side', ['gradient', 'update'])
def test_rate_of_a_loaded_state_counts(side):
    net = make_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-9)
    state = torch.optim.SGD(net.parameters(), lr=1e3).state_dict()
    handle = attach(optimizer, dict(type='Auto', side=side), model=net)
    for expected in (False, True):
        backward(net, 1e3)
        optimizer.step()
        assert (handle.stats()['clip_fraction'] > 0) == expected
        optimizer.load_state_dict(state)


def test_group_added_later_is_bounded_by_its_own_rate():
    net = make_net()
    head = nn.Linear(3, 3, bias=False)
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    attach(optimizer, AUTO, model=nn.ModuleList([net, head]))
    backward(net, 1e3)
    optimizer.step()
    optimizer.add_param_group(dict(params=head.parameters(), lr=10.0))
    head.weight.grad = torch.full((3, 3), 1e3)
    backward(net, 1e3)
    optimizer.step()
    limit = REACH * sizes_of('head', head.weight, ('head',)) / 10.0
    assert (head.weight.grad.double().norm(dim=1) <= limit * 1.01).all()
