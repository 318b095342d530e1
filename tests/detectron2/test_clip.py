"""``clip``: the rule in all its forms, equal bits, state, numbers, refusals."""

from __future__ import annotations

import json
import math

import pytest
import torch
from detectron2.config import LazyCall, get_cfg
from detectron2.engine import SimpleTrainer
from detectron2.solver import build_optimizer
from torch import distributed as dist
from torch import nn

from gclip_mm.clipping import ClipConfigError, GradClipEngine
from gclip_mm.detectron2 import add_gclip_config, clip
from tests.detectron2.toy import Trainer, batches, make_cfg, make_model, same, trainer_of, weights

NORM = dict(type='NormClip', max_norm=0.05)
STATEFUL = dict(type='AutoClip', percentile=30, window=50)


class FullModelClip(torch.optim.SGD):
    """Clips the norm of all gradients before it steps."""

    def step(self, closure=None):
        everything = [p for group in self.param_groups for p in group['params']]
        torch.nn.utils.clip_grad_norm_(everything, 0.05)
        super().step(closure)


def trained(tmp_path, build, *options, iterations=25, resume=False):
    """A trainer whose optimizer ``build(cfg, model)`` makes, after its training."""
    cfg = make_cfg(tmp_path, iterations, *options)
    trainer = type('T', (Trainer,), {'build_optimizer': staticmethod(build)})(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer


def clipped(rule):
    return lambda cfg, model: clip(build_optimizer(cfg, model), rule, model)


# -- equal bits ------------------------------------------------------------------------------------
def test_norm_clip_gives_the_bits_of_a_full_model_clip(tmp_path):
    def full(cfg, model):
        optimizer = build_optimizer(cfg, model)
        return FullModelClip(optimizer.param_groups, lr=cfg.SOLVER.BASE_LR)

    ours = trained(tmp_path / 'a', clipped(NORM))
    theirs = trained(tmp_path / 'b', full)
    free = trained(tmp_path / 'c', build_optimizer)
    assert same(weights(ours.model), weights(theirs.model))
    assert not same(weights(ours.model), weights(free.model))


def test_value_clip_gives_the_bits_of_detectron2s_value_type(tmp_path):
    options = ('SOLVER.CLIP_GRADIENTS.ENABLED', 'True', 'SOLVER.CLIP_GRADIENTS.CLIP_VALUE', '0.01')
    ours = trained(tmp_path / 'a', clipped(dict(type='ValueClip', clip_value=0.01)))
    theirs = trained(tmp_path / 'b', build_optimizer, *options)
    free = trained(tmp_path / 'c', build_optimizer)
    assert same(weights(ours.model), weights(theirs.model))
    assert not same(weights(ours.model), weights(free.model))


def test_param_norm_clip_is_detectron2s_norm_type(tmp_path):
    options = ['SOLVER.CLIP_GRADIENTS.ENABLED', 'True', 'SOLVER.CLIP_GRADIENTS.CLIP_TYPE', 'norm']
    options += ['SOLVER.CLIP_GRADIENTS.CLIP_VALUE', '0.02']
    ours = trained(tmp_path / 'a', clipped(dict(type='ParamNormClip', max_norm=0.02)))
    theirs = trained(tmp_path / 'b', build_optimizer, *options)
    for a, b in zip(weights(ours.model).values(), weights(theirs.model).values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_ddp_run_equals_a_plain_run(tmp_path):
    def train(wrap):
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        outer = wrap(model)
        clip(optimizer, dict(NORM, exclude=[r'^box_predictor\.cls_score']), outer)
        SimpleTrainer(outer, batches(6), optimizer).train(0, 6)
        return weights(model)

    dist.init_process_group('gloo', f'file://{tmp_path}/rendezvous', rank=0, world_size=1)
    try:
        assert same(train(lambda model: model), train(nn.parallel.DistributedDataParallel))
    finally:
        dist.destroy_process_group()


# -- the forms of a rule ---------------------------------------------------------------------------
def rule_in_cfg(text):
    cfg = get_cfg()
    add_gclip_config(cfg)
    cfg.merge_from_list(['SOLVER.GCLIP', text])
    return cfg


AGC = dict(type='AGC', clip_factor=0.02, exclude=['cls_score'])
FORMS = {
    'dict': AGC,
    'DictConfig': LazyCall(torch.optim.SGD)(rule=AGC).rule,
    'string': 'type=AGC,clip_factor=0.02,exclude=[cls_score]',
    'cfg': rule_in_cfg('type=AGC,clip_factor=0.02,exclude=[cls_score]'),
}


@pytest.mark.parametrize('form', FORMS)
def test_every_form_of_a_rule_is_the_same_config(form):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert clip(optimizer, FORMS[form], model) is optimizer
    config = GradClipEngine.on(optimizer).config
    assert config.raw == AGC
    assert type(config.raw) is dict and type(config.raw['exclude']) is list


@pytest.mark.parametrize('rule', ['Auto', rule_in_cfg('Auto')], ids=['string', 'cfg'])
def test_a_name_is_a_rule(rule):
    model = make_model()
    optimizer = clip(torch.optim.SGD(model.parameters(), lr=0.1), rule, model)
    assert GradClipEngine.on(optimizer).config.raw == dict(type='Auto')


def test_empty_key_of_the_config_does_not_clip():
    cfg = get_cfg()
    add_gclip_config(cfg)
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert clip(optimizer, cfg, model) is optimizer
    assert GradClipEngine.on(optimizer) is None
    assert 'gclip' not in optimizer.state_dict()


@pytest.mark.parametrize(
    ('rule', 'message'),
    [
        (get_cfg(), r'no SOLVER\.GCLIP: call gclip_mm\.detectron2\.add_gclip_config'),
        ('', r"got ''"),
        (None, 'got None'),
        ({}, r'got \{\}'),
        (35, 'got 35'),
        ('type=AGC,clip_facto=0.01', "no key 'clip_facto'"),
        ('AGD', "'AGD'"),
        ('type=AGC,0.01', r"'0\.01' is not of the form key=value"),
        (dict(type='AGC', exclude=['nothing']), 'nothing'),
    ],
)
def test_invalid_rule_is_named_and_leaves_the_optimizer_alone(rule, message):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ClipConfigError, match=message):
        clip(optimizer, rule, model)
    assert GradClipEngine.on(optimizer) is None and 'gclip' not in optimizer.state_dict()
    assert 'forward' not in vars(model)


@pytest.mark.parametrize('period', [0, 2.5, True])
def test_log_period_is_a_whole_number_above_zero(period):
    model = make_model()
    with pytest.raises(ClipConfigError, match='log_period'):
        clip(torch.optim.SGD(model.parameters(), lr=0.1), 'Auto', model, log_period=period)


def test_a_model_is_needed():
    model = make_model()
    with pytest.raises(ClipConfigError, match=r'model must be the torch\.nn\.Module'):
        clip(torch.optim.SGD(model.parameters(), lr=0.1), 'Auto', None)


# -- clipping twice --------------------------------------------------------------------------------
@pytest.mark.parametrize('kind', ['value', 'norm'])
def test_clipping_of_detectron2_is_refused(tmp_path, kind):
    options = ['SOLVER.CLIP_GRADIENTS.ENABLED', 'True', 'SOLVER.CLIP_GRADIENTS.CLIP_TYPE', kind]
    model = make_model()
    optimizer = build_optimizer(make_cfg(tmp_path, 1, *options), model)
    with pytest.raises(ClipConfigError, match=r'CLIP_GRADIENTS\.ENABLED = False'):
        clip(optimizer, 'Auto', model)


def test_clipping_twice_is_refused():
    model = make_model()
    optimizer = clip(torch.optim.SGD(model.parameters(), lr=0.1), 'Auto', model)
    with pytest.raises(ClipConfigError, match='clipped already'):
        clip(optimizer, NORM, model)


# -- state -----------------------------------------------------------------------------------------
def test_state_rides_in_the_state_of_the_optimizer(tmp_path):
    options = ('SOLVER.CHECKPOINT_PERIOD', 4)
    whole = trained(tmp_path / 'a', clipped(STATEFUL), iterations=8)

    def resumed(folder, *, forget):
        # Stops after 4 of 8 iterations; the second half gets the batches of the second half.
        cfg = make_cfg(tmp_path / folder, 8, *options)
        build = {'build_optimizer': staticmethod(clipped(STATEFUL))}
        trainer = type('T', (trainer_of(batches(8)),), build)(cfg)
        trainer.max_iter = 4
        trainer.train()
        path = tmp_path / folder / (tmp_path / folder / 'last_checkpoint').read_text()
        checkpoint = torch.load(path)
        if forget:
            del checkpoint['trainer']['_trainer']['optimizer']['gclip']
            torch.save(checkpoint, path)
        trainer = type('T', (trainer_of(batches(8)[4:]),), build)(cfg)
        trainer.resume_or_load(resume=True)
        assert trainer.start_iter == 4
        trainer.train()
        return trainer

    assert same(weights(whole.model), weights(resumed('b', forget=False).model))
    # Also: a checkpoint without the state loads, and the rule starts from scratch.
    assert not same(weights(whole.model), weights(resumed('c', forget=True).model))


def test_state_loads_without_clipping():
    model = make_model()
    state = clip(torch.optim.SGD(model.parameters(), lr=0.1), STATEFUL, model).state_dict()
    assert state['gclip']['routes'][0]['rule'] == 'AutoClip'
    torch.optim.SGD(model.parameters(), lr=0.1).load_state_dict(state)
    assert 'gclip' in state


def test_state_of_another_rule_is_refused_in_words_that_fit():
    model = make_model()
    optimizer = clip(torch.optim.SGD(model.parameters(), lr=0.1), STATEFUL, model)
    other = clip(torch.optim.SGD(model.parameters(), lr=0.1), 'type=ZClip', model)
    model(batches(1)[0])['loss_cls'].backward()
    optimizer.step()
    with pytest.raises(ValueError, match='AutoClip') as error:
        other.load_state_dict(optimizer.state_dict())
    assert 'load_from' not in str(error.value)


# -- numbers ---------------------------------------------------------------------------------------
def lines(folder):
    return [json.loads(line) for line in (folder / 'metrics.json').read_text().splitlines()]


def test_numbers_are_in_the_line_of_their_iteration(tmp_path):
    """The norm and coefficient of every step, computed here, have the means that are logged."""
    norms = []

    def build(cfg, model):
        optimizer = build_optimizer(cfg, model)

        def look(*_):
            grads = [p.grad.double().flatten() for p in model.parameters()]
            norms.append(float(torch.cat(grads).norm()))

        optimizer.register_step_pre_hook(look)
        return clip(optimizer, NORM, model)

    trained(tmp_path, build, iterations=45)
    logged = {line['iteration']: line for line in lines(tmp_path) if 'gclip/grad_norm' in line}
    assert sorted(logged) == [19, 39]
    for last, line in logged.items():
        assert 'total_loss' in line
        some = norms[last - 19 : last + 1]
        coefs = [min(1, 0.05 / (norm + 1e-6)) for norm in some]
        assert line['gclip/grad_norm'] == pytest.approx(sum(some) / 20, rel=1e-4)
        assert line['gclip/clip_coef'] == pytest.approx(sum(coefs) / 20, rel=1e-4)
        assert line['gclip/clip_threshold'] == pytest.approx(0.05)
        assert line['gclip/nonfinite'] == 0
    assert len(norms) == 45


def test_log_period_and_accumulation(tmp_path):
    """A step only every third iteration: each entry holds the steps since the last."""

    class Accumulating(SimpleTrainer):
        entries: set = set()

        def run_step(self):
            self.model(next(self._data_loader_iter))['loss_cls'].backward()
            if self.iter % 3 == 2:
                self.optimizer.step()
                self.optimizer.zero_grad()
            latest = self.storage.latest().get('gclip/grad_norm')
            if latest is not None:
                self.entries.add(latest[1])

    model = make_model()
    optimizer = clip(torch.optim.SGD(model.parameters(), lr=0.1), NORM, model, log_period=5)
    trainer = Accumulating(model, batches(20), optimizer)
    trainer.train(0, 20)
    # Steps are at 2, 5, 8, 11, 14, 17; writers write at 4, 9, 14, 19.
    assert sorted(trainer.entries) == [5, 11, 14]


def test_skipped_steps_count_as_nonfinite_only(tmp_path):
    """A step under a loss scaler's or a NaN gradient: 4 of 20 are skipped."""
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    bad = {3, 7, 11, 15}

    class Loop(SimpleTrainer):
        def run_step(self):
            self.optimizer.zero_grad()
            loss = self.model(next(self._data_loader_iter))['loss_cls']
            (loss * (math.nan if self.iter in bad else 1.0)).backward()
            self.optimizer.step()

    clip(optimizer, NORM, model)
    trainer = Loop(model, batches(20), optimizer)
    trainer.train(0, 20)
    latest = trainer.storage.latest()
    assert latest['gclip/nonfinite'] == (pytest.approx(0.2), 19)
    assert 0 < latest['gclip/clip_coef'][0] < 1 and math.isfinite(latest['gclip/grad_norm'][0])


def test_without_an_event_storage_nothing_is_put():
    model = make_model()
    optimizer = clip(torch.optim.SGD(model.parameters(), lr=0.1), NORM, model)
    model(batches(1)[0])['loss_cls'].backward()
    optimizer.step()
    assert GradClipEngine.on(optimizer).stats()['grad_norm'] > 0
