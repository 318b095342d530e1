"""The guard: what would end the run ends in a step that is left out, on all ranks alike."""

from __future__ import annotations

import copy
import io
import logging
import math

import pytest
import torch
from detectron2.engine import HookBase, SimpleTrainer
from detectron2.solver import build_optimizer
from torch import nn

from gclip_mm.clipping import GradClipEngine, NonFiniteGradientError
from gclip_mm.detectron2 import clip
from tests.detectron2 import ranks
from tests.detectron2.toy import (
    Toy,
    Trainer,
    batches,
    make_cfg,
    make_model,
    same,
    trainer_of,
    weights,
)

RULE = dict(type='NormClip', max_norm=0.5, max_consecutive_skips=3)
FAULTS = {
    'RPN raises': Toy.RAISES,
    'loss is NaN': Toy.NAN_LOSS,
    'metric without gradient is NaN': Toy.NAN_METRIC,
}


def build(cfg, model):
    return clip(build_optimizer(cfg, model), RULE, model)


def train(folder, data, *options):
    cfg = make_cfg(folder, len(data), *options)
    trainer = type('T', (trainer_of(data),), {'build_optimizer': staticmethod(build)})(cfg)
    trainer.train()
    return trainer


def loop(model, data, rule=RULE, cls=SimpleTrainer, **options):
    """Train a model in a trainer without a config; returns the trainer."""
    optimizer = clip(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), rule, model)
    trainer = cls(model, data, optimizer, **options)
    trainer.train(0, len(data))
    return trainer


@pytest.mark.parametrize('kind', FAULTS)
def test_faulty_iterations_leave_no_trace(kind, tmp_path):
    """Weights, momentum and buffers are those of a run without these batches."""
    data = batches(8, {2: FAULTS[kind], 5: FAULTS[kind], 6: FAULTS[kind]})
    good = [data[i] for i in (0, 1, 3, 4, 7)]
    ours, clean = train(tmp_path / 'a', data), train(tmp_path / 'b', good)
    assert ours.iter == 8 and clean.iter == 5
    assert same(weights(ours.model), weights(clean.model))
    pairs = zip(ours.optimizer.state.values(), clean.optimizer.state.values(), strict=True)
    assert all(torch.equal(a['momentum_buffer'], b['momentum_buffer']) for a, b in pairs)
    engine = GradClipEngine.on(ours.optimizer)
    assert engine.steps == 8 and engine.stats()['nonfinite'] == 0


@pytest.mark.parametrize('kind', FAULTS)
def test_log_has_the_skipped_share_and_no_loss_of_a_skipped_step(kind, tmp_path):
    trainer = train(tmp_path, batches(20, {4: FAULTS[kind], 9: FAULTS[kind]}))
    latest = trainer.storage.latest()
    assert latest['gclip/nonfinite'] == (pytest.approx(0.1), 19)
    assert all(math.isfinite(value) for value, _ in latest.values())


@pytest.mark.parametrize('kind', FAULTS)
def test_run_that_only_skips_ends(kind):
    data = batches(9, dict.fromkeys(range(3, 9), FAULTS[kind]))
    model = make_model()
    with pytest.raises(NonFiniteGradientError, match='max_consecutive_skips=3'):
        loop(model, data)
    clean = make_model()
    loop(clean, data[:3])
    assert same(weights(model), weights(clean))


@pytest.mark.parametrize('kind', FAULTS)
@pytest.mark.parametrize(
    'rule',
    [
        dict(type='NormClip', max_norm=0.5),
        dict(type='NormClip', max_norm=0.5, nonfinite='raise', max_consecutive_skips=3),
        dict(type='NormClip', max_norm=0.5, nonfinite='off', max_consecutive_skips=3),
        dict(type='NormClip', max_norm=0.5, nonfinite='zero', max_consecutive_skips=3),
    ],
    ids=['no limit', 'raise', 'off', 'zero'],
)
def test_without_the_guard_the_run_ends_as_it_did(kind, rule):
    with pytest.raises(FloatingPointError, match='Predicted boxes|Loss became infinite'):
        loop(make_model(), batches(4, {2: FAULTS[kind]}), rule)


def test_invalid_boxes_still_raise():
    with pytest.raises(AssertionError, match='Input boxes'):
        loop(make_model(), batches(4, {2: Toy.BAD_BOX}))


def test_first_iteration_that_raises_ends_the_run():
    """No losses are known whose names the other ranks could expect."""
    with pytest.raises(FloatingPointError, match='Predicted boxes'):
        loop(make_model(), batches(4, {0: Toy.RAISES}))


def test_other_trainers_still_raise():
    """The wrapped method of SimpleTrainer does for them what it did."""
    loop(make_model(), batches(2))
    model = make_model()
    trainer = SimpleTrainer(
        model, batches(3, {1: Toy.NAN_LOSS}), torch.optim.SGD(model.parameters(), lr=0.1)
    )
    with pytest.raises(FloatingPointError, match='Loss became infinite'):
        trainer.train(0, 3)


def test_metric_that_fails_with_finite_gradients_still_raises():
    class Checks(SimpleTrainer):
        def run_step(self):
            loss = self.model(next(self._data_loader_iter))['loss_cls']
            self.optimizer.zero_grad()
            loss.backward()
            self._write_metrics({'of the project': loss.detach() * math.inf}, 0.0)

    with pytest.raises(FloatingPointError, match='of the project'):
        loop(make_model(), batches(3), cls=Checks)


class WithScaler(SimpleTrainer):
    """Mixed precision on a CPU; writes the metrics after the step, as detrex does."""

    def run_step(self):
        self.scaler = getattr(self, 'scaler', None) or torch.amp.GradScaler('cpu', init_scale=8.0)
        losses = self.model(next(self._data_loader_iter))
        self.optimizer.zero_grad()
        self.scaler.scale(sum(losses.values())).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self._write_metrics(losses, 0.0)


@pytest.mark.parametrize('kind', FAULTS)
def test_under_a_loss_scaler(kind):
    data = batches(6, {2: FAULTS[kind]})
    model, clean = make_model(), make_model()
    loop(model, data, cls=WithScaler)
    # The scale is a power of two, and halving it changes no bit.
    loop(clean, data[:2] + data[3:], cls=WithScaler)
    assert same(weights(model), weights(clean))


@pytest.mark.parametrize(
    'options', [dict(zero_grad_before_forward=True), dict(async_write_metrics=True)], ids=str
)
def test_options_of_the_trainer(options):
    data = batches(6, {2: Toy.RAISES, 4: Toy.NAN_LOSS})
    model, clean = make_model(), make_model()
    loop(model, data, **options)
    loop(clean, [data[0], data[1], data[3], data[5]])
    assert same(weights(model), weights(clean))


def test_model_that_returns_one_loss():
    class OneLoss(Toy):
        def forward(self, data):
            return sum(super().forward(data).values())

    data = batches(5, {2: Toy.RAISES, 3: Toy.NAN_LOSS})
    models = []
    for some in (data, [data[0], data[1], data[4]]):
        torch.manual_seed(0)
        models.append(OneLoss())
        loop(models[-1], some)
    assert same(*map(weights, models))


class Refresh(HookBase):
    """Writes to a buffer between two steps, as PreciseBN does."""

    def after_step(self):
        if self.trainer.iter == 1:
            self.trainer.model.norm.running_mean.fill_(7.0)


def test_buffers_go_back_to_what_hooks_made_of_them():
    model = make_model()
    optimizer = clip(torch.optim.SGD(model.parameters(), lr=0.1), RULE, model)
    trainer = SimpleTrainer(model, batches(3, {2: Toy.RAISES}), optimizer)
    trainer.register_hooks([Refresh()])
    trainer.train(0, 3)
    assert model.norm.running_mean.tolist() == [7.0] * 5


@pytest.mark.parametrize('mode', ['evaluation', 'no gradient'])
def test_forward_passes_that_do_not_train_still_raise(mode):
    model = make_model()
    loop(model, batches(2))
    bad = batches(1, {0: Toy.RAISES})[0]
    model.train(mode == 'no gradient')
    with torch.set_grad_enabled(mode != 'no gradient'), pytest.raises(FloatingPointError):
        model(bad)


def test_copies_of_the_model_are_their_own():
    model = make_model()
    loop(model, batches(2))
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    bad = batches(1, {0: Toy.RAISES})[0]
    assert model(bad)['loss_cls'].isnan()
    for other in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        nn.init.zeros_(other.box_predictor['cls_score'].weight)
        nn.init.zeros_(other.box_predictor['cls_score'].bias)
        losses = other(batches(1)[0])
        assert losses['loss_cls'] == 0 and model(batches(1)[0])['loss_cls'] > 0
        with pytest.raises(FloatingPointError):
            other(bad)


def test_reason_is_in_the_log_of_the_run(caplog):
    with caplog.at_level(logging.WARNING, 'detectron2'):
        # Detectron2's loggers do not propagate to the root once they are set up.
        logger = logging.getLogger('detectron2.gclip_mm')
        logger.addHandler(caplog.handler)
        loop(make_model(), batches(4, {1: Toy.RAISES, 3: Toy.NAN_LOSS}))
        logger.removeHandler(caplog.handler)
    text = caplog.text
    assert 'left out: Predicted boxes' in text and "'loss_box': nan" in text


@pytest.fixture(scope='module')
def on_two_ranks(tmp_path_factory):
    """What two ranks found for each fault; under None, in a run without the faulty batch."""
    faults = {**FAULTS, None: None}
    runs = ranks.train_on_two(tmp_path_factory.mktemp('ranks'), list(faults.values()))
    return dict(zip(faults, runs, strict=True))


@pytest.mark.parametrize('kind', FAULTS)
def test_all_ranks_leave_the_step_out(kind, on_two_ranks):
    """One of two ranks has the faulty batch; both end with the weights of a run without it."""
    faulty, clean = on_two_ranks[kind], on_two_ranks[None]
    assert same(faulty[0]['parameters'], faulty[1]['parameters'])
    assert all(same(a['weights'], b['weights']) for a, b in zip(faulty, clean, strict=True))
    assert [each['skipped'] for each in faulty] == [1, 1]
    assert [each['skipped'] for each in clean] == [0, 0]


def test_trainer_without_a_rule_is_not_touched(tmp_path):
    trainer = Trainer(make_cfg(tmp_path, 1))
    assert 'forward' not in vars(trainer.model)
