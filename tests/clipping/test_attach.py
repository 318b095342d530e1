"""``attach``: clipping in any loop other than MMEngine's."""

import copy
import io
import math

import pytest
import torch
from torch import nn

import gclip_mm
from gclip_mm import ClipConfigError, attach
from gclip_mm.clipping import LOG_KEYS
from tests.clipping.cases import CASES, equal, make_optimizer


class Net(nn.Module):
    """A small model with every kind of unit that AGC distinguishes."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.up = nn.ConvTranspose2d(4, 3, 2)
        self.norm = nn.GroupNorm(1, 3)
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.norm(self.up(self.conv(x).relu())).mean((2, 3)))


def train(config, model, optimizer, steps=5, before_step=None):
    losses = []
    for step in range(steps):
        x = torch.randn(4, 2, 5, 5, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss = model(x).square().sum()
        loss.backward()
        if before_step is not None:
            before_step()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def test_attach_clips_a_training_loop_and_reports_stats():
    assert gclip_mm.attach is attach
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    handle = attach(optimizer, dict(type='AGC', clip_factor=0.01), model=model)
    assert handle.stats() == {}
    losses = train(None, model, optimizer, steps=30)
    stats = handle.stats()
    assert tuple(stats) == LOG_KEYS and all(type(value) is float for value in stats.values())
    # The batches differ, so compare sums over several.
    assert sum(losses[-5:]) < sum(losses[:5]) and stats['clip_fraction'] > 0
    assert 0 < stats['grad_norm_post'] < stats['grad_norm']
    assert stats['clip_coef'] == pytest.approx(stats['grad_norm_post'] / stats['grad_norm'])


@pytest.mark.parametrize('fused', [False, True])
@pytest.mark.parametrize('name', ['SGD', 'Adam', 'AdamW'])
def test_attach_matches_clip_grad_norm_called_by_hand(name, fused):
    ours, theirs = Net(), Net()
    kwargs = dict(lr=0.05, fused=fused, **(dict(momentum=0.9) if name == 'SGD' else {}))
    a = getattr(torch.optim, name)(ours.parameters(), **kwargs)
    b = getattr(torch.optim, name)(theirs.parameters(), **kwargs)
    attach(a, dict(max_norm=0.5))
    mine = train(None, ours, a)
    clip = torch.nn.utils.clip_grad_norm_
    hand = train(None, theirs, b, before_step=lambda: clip(theirs.parameters(), 0.5))
    if fused:
        assert mine == pytest.approx(hand, rel=1e-5)
    else:
        assert mine == hand
        assert equal(dict(ours.state_dict()), dict(theirs.state_dict()))


def test_config_is_neither_modified_nor_shared():
    model = Net()
    config = dict(
        type='AGC',
        clip_factor=0.05,
        exclude=['head', dict(module='GroupNorm')],
        rules=[
            dict(match='^conv', type='norm', max_norm=1.0, schedule=dict(type='linear', end=9)),
            dict(module='ConvTranspose2d', clip_factor=0.1),
        ],
        schedule=[dict(type='linear', start_factor=0.1, end=9)],
        nonfinite='zero',
    )
    before = copy.deepcopy(config)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    attach(optimizer, config, model=model)
    train(None, model, optimizer)
    assert config == before
    # A later change of the dict does not reach the engine.
    config['rules'][0]['max_norm'] = 99
    assert gclip_mm.clipping.GradClipEngine.on(optimizer).config.raw == before


@pytest.mark.parametrize('case', CASES)
@pytest.mark.parametrize('fused', [False, True])
def test_resumed_run_equals_an_uninterrupted_run(case, fused):
    config = CASES[case]

    def build():
        model = Net()
        optimizer = make_optimizer(config, model.parameters(), fused=fused)
        return model, optimizer, attach(optimizer, config, model=model)

    def steps(model, optimizer, which):
        for step in which:
            x = torch.randn(4, 2, 5, 5, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()

    model, optimizer, handle = build()
    steps(model, optimizer, range(8))
    first, first_optimizer, first_handle = build()
    steps(first, first_optimizer, range(4))
    file = io.BytesIO()
    torch.save([first.state_dict(), first_optimizer.state_dict(), first_handle.state_dict()], file)
    second, second_optimizer, second_handle = build()
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    second.load_state_dict(saved[0])
    second_optimizer.load_state_dict(saved[1])
    second_handle.load_state_dict(saved[2])
    steps(second, second_optimizer, range(4, 8))
    assert equal(dict(second.state_dict()), dict(model.state_dict()))
    assert second_handle.stats() == handle.stats()
    assert equal(second_handle.state_dict(), handle.state_dict())


def test_routes_without_a_model_raise():
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    attach(optimizer, dict(max_norm=1.0, exclude=['head']))
    with pytest.raises(ClipConfigError, match=r'attach\(optimizer, clip_grad, model=model\)'):
        train(None, model, optimizer, 1)


def test_schedule_by_epoch_without_a_runner_raises():
    optimizer = torch.optim.SGD(Net().parameters(), lr=0.01)
    with pytest.raises(ClipConfigError, match='by_epoch=True needs a runner'):
        attach(optimizer, dict(max_norm=1.0, schedule=dict(type='linear', end=5, by_epoch=True)))


@pytest.mark.parametrize('thing', [None, 'SGD', Net()], ids=['None', 'str', 'model'])
def test_attach_to_anything_but_an_optimizer_raises(thing):
    with pytest.raises(ClipConfigError, match=r'torch\.optim\.Optimizer, got'):
        attach(thing, dict(max_norm=1.0))


def test_schedule_counts_optimizer_steps_including_skipped_ones():
    p = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([p], lr=0.0)
    handle = attach(
        optimizer, dict(max_norm=1.0, schedule=dict(type='linear', start_factor=0.5, end=3))
    )
    seen = []
    for step in range(4):
        p.grad = torch.ones(1) * (math.nan if step == 1 else 1)
        optimizer.step()
        seen.append(handle.stats()['clip_threshold'])
    # A skipped step counts: the schedule follows time, as that of a learning rate does.
    assert seen[0] == 0.5 and math.isnan(seen[1]) and seen[2:] == [1.0, 1.0]


def test_two_optimizers_of_one_model_are_clipped_separately():
    model = Net()
    a = torch.optim.SGD(model.conv.parameters(), lr=0.1)
    b = torch.optim.AdamW([*model.up.parameters(), *model.head.parameters()], lr=0.1, fused=True)
    one, two = attach(a, dict(max_norm=0.1), model), attach(b, dict(type='AGC'), model)
    for step in range(3):
        x = torch.randn(4, 2, 5, 5, generator=torch.Generator().manual_seed(step))
        model.zero_grad()
        model(x).square().sum().backward()
        norms = [p.grad.norm() for p in model.conv.parameters()]
        a.step()
        b.step()
        assert one.stats()['grad_norm'] == pytest.approx(float(torch.stack(norms).norm()))
        assert two.stats()['grad_norm'] > 0
