"""docs/accelerate.md, run with the real package (``make test-loops``)."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import gclip_mm
from gclip_mm.clipping import GradClipEngine
from tests.examples.pages import run_page

accelerate = pytest.importorskip('accelerate', reason='make test-loops')

RULE = dict(type='AutoClip', percentile=30, window=50)


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))


def loader(bad=()):
    made = torch.Generator().manual_seed(1)
    data, target = torch.randn(32, 6, generator=made), torch.randn(32, 3, generator=made)
    for batch in bad:
        data[4 * batch] = float('inf')
    return DataLoader(TensorDataset(data, target), batch_size=4)


@pytest.fixture(scope='module')
def train():
    # Accelerate's state is one for the process; the machine may have a GPU.
    accelerate.Accelerator(cpu=True)
    return run_page('accelerate.md')['train']


def by_hand(data, rule=RULE):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    if rule is not None:
        gclip_mm.attach(optimizer, rule, model=model)
    for inputs, target in data:
        nn.functional.mse_loss(model(inputs), target).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def equal(a, b):
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize('bad', [(), (3,)], ids=['finite', 'one batch is not'])
def test_page_gives_the_bits_of_a_plain_loop(train, bad):
    model = make_model()
    _, clip = train(model, loader(bad), RULE)
    assert equal(model, by_hand(loader(bad)))
    assert clip.engine.steps == 8 and all(p.isfinite().all() for p in model.state_dict().values())
    assert not equal(model, by_hand(loader(bad), None))


def test_state_is_saved_and_loaded(train, tmp_path):
    accelerator, clip = train(make_model(), loader(), RULE)
    accelerator.save_state(str(tmp_path))
    saved = clip.state_dict()
    other, again = train(make_model(), DataLoader(loader().dataset, batch_size=16), RULE)
    assert again.state_dict()['steps'] == 2
    other.load_state(str(tmp_path))
    state = again.state_dict()
    assert state['steps'] == saved['steps'] == 8
    for key, value in saved['routes'][0]['state'].items():
        torch.testing.assert_close(
            state['routes'][0]['state'][key], value, rtol=0, atol=0, equal_nan=True
        )


def scaled(when, bad=()):
    """Train under a loss scaler, which ``prepare`` would make for a GPU; attach in either order."""
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    if when == 'before':
        gclip_mm.attach(optimizer, RULE, model=model)
    scaler = torch.amp.GradScaler('cpu', init_scale=8.0)
    prepared = accelerate.optimizer.AcceleratedOptimizer(optimizer, scaler=scaler)
    if when == 'after':
        gclip_mm.attach(prepared, RULE, model=model)
    for inputs, target in loader(bad):
        scaler.scale(nn.functional.mse_loss(model(inputs), target)).backward()
        prepared.step()
        prepared.zero_grad()
    return model, GradClipEngine.on(prepared)


@pytest.mark.parametrize('bad', [(), (3,)], ids=['finite', 'one batch is not'])
@pytest.mark.parametrize(
    'when',
    ['before', pytest.param('after', marks=pytest.mark.filterwarnings('ignore:the step of SGD'))],
)
def test_under_a_loss_scaler_the_rule_clips_in_either_order(train, when, bad):
    model, engine = scaled(when, bad)
    assert equal(model, by_hand(loader(bad)))
    assert engine.steps == 8


def test_prepared_optimizer_stands_for_the_one_within(train):
    model = make_model()
    accelerator = accelerate.Accelerator(cpu=True)
    prepared = accelerator.prepare(torch.optim.SGD(model.parameters(), lr=0.1))
    gclip_mm.attach(prepared, RULE, model=model)
    assert GradClipEngine.on(prepared) is GradClipEngine.on(prepared.optimizer) is not None
