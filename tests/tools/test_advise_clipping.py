"""The advisor on a toy: a rate that blows up is lowered, and its configs train."""

from __future__ import annotations

import json

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, MODELS

from gclip_mm.analysis.advice import advise
from gclip_mm.analysis.gradient_stats import load_stats
from gclip_mm.analysis.record import AdviceError, record_gradients

from .conftest import ROOT, load_tool


@pytest.fixture(scope='module')
def tool():
    return load_tool(ROOT / 'tools' / 'analysis' / 'advise_clipping.py')


SGD = ['optim_wrapper.optimizer.type=SGD', 'optim_wrapper.optimizer.lr=0.02']


def toy(toy_config, lr=0.02, **optim_wrapper) -> Config:
    cfg = Config.fromfile(toy_config)
    cfg.optim_wrapper = dict(
        type='OptimWrapper', optimizer=dict(type='SGD', lr=lr, momentum=0.9), **optim_wrapper
    )
    return cfg


def test_steps_are_recorded_without_clipping(toy_config):
    cfg = toy(toy_config, clip_grad=dict(max_norm=1e-9))
    before = cfg.pretty_text
    seen = []
    recording = record_gradients(cfg, 12, progress=seen.append)
    assert cfg.pretty_text == before, 'the config is not changed'
    stats = recording.stats
    assert stats.grad.shape == (12, 4) and recording.failed == [] and recording.lr == 0.02
    # With a clip of 1e-9 nothing would have been learned.
    assert stats.loss[-3:].mean() < 0.8 * stats.loss[:3].mean()
    assert stats.lr[0] < stats.lr[-1] == pytest.approx(0.02)
    assert 'step 12/12' in seen[-1]


def test_a_rate_that_blows_up_is_lowered(toy_config):
    said = []
    recording = record_gradients(toy(toy_config, lr=20.0), 30, progress=said.append)
    rates = [rate for rate, _ in recording.failed] + [recording.lr]
    assert len(rates) > 1 and rates[0] == 20.0
    assert all(later == earlier / 4 for earlier, later in zip(rates, rates[1:], strict=False))
    assert all('loss rose' in why or 'not finite' in why for _, why in recording.failed)
    assert any('trying 5' in text for text in said)
    assert recording.stats.norm.max() < 1e4, 'nothing of the failed runs is left'


def test_accumulated_batches_make_one_step(toy_config):
    cfg = toy(toy_config, accumulative_counts=3)
    assert len(record_gradients(cfg, 10).stats.norm) == 10


def test_of_the_hooks_only_those_that_prepare_a_run(toy_config):
    ran = []

    class Prepares(Hook):
        def before_run(self, runner):
            ran.append('prepares')

    class Meddles(Prepares):
        def after_train_iter(self, *args, **kwargs):
            ran.append('meddles')

    cfg = toy(toy_config)
    cfg.custom_hooks = [dict(type='Prepares'), dict(type='Meddles'), dict(type='EMAHook')]
    try:
        for hook in (Prepares, Meddles):
            HOOKS.register_module(module=hook)
        record_gradients(cfg, 10)
    finally:
        for name in ('Prepares', 'Meddles'):
            HOOKS.module_dict.pop(name, None)
    assert ran == ['prepares']


def test_a_gradient_that_is_never_finite(toy_config, monkeypatch):
    # Whose import registers the model.
    cfg = toy(toy_config)
    kind = MODELS.get('ToyRegressor')
    forward = kind.forward

    def broken(self, inputs, target, sample_idx=None, mode='tensor'):
        out = forward(self, inputs, target, sample_idx, mode)
        return {'loss': out['loss'] * torch.tensor(float('nan'))} if mode == 'loss' else out

    monkeypatch.setattr(kind, 'forward', broken)
    with pytest.raises(AdviceError, match='no learning rate will mend'):
        record_gradients(cfg, 10)


def test_a_rate_that_never_serves(toy_config):
    with pytest.raises(AdviceError, match='at every rate that was tried: 1e'):
        record_gradients(toy(toy_config, lr=1e9), 30, attempts=2)


def test_what_is_printed_and_written(tool, toy_config, tmp_path, capsys):
    out = tmp_path / 'out'
    arguments = [toy_config, '--iterations', '12', '--out', str(out), '--cfg-options', *SGD]
    assert tool.main(arguments) == 0
    text = capsys.readouterr().out
    advice = json.loads((out / 'advice.json').read_text())
    assert advice['lr'] == 0.02 and advice['steps'] == 12
    stats = load_stats(out / 'stats.npz')
    expected = advise(stats, 0.02, 0.0)
    assert [item['clip_grad'] for item in advice['advice']] == [a.clip_grad for a in expected]
    for item in advice['advice']:
        for number in item['clip_grad'].values():
            assert str(number) in text
        assert item['reason'].split()[0] in text
    assert (out / 'distributions.png').stat().st_size > 30_000
    assert set(advice['module_grad_norm']) == {'net.0', 'net.2'}
    assert advice['grad_norm']['p100'] == pytest.approx(stats.norm.max())


def test_another_rate_from_the_same_statistics(tool, toy_config, tmp_path, capsys, monkeypatch):
    out = tmp_path / 'out'
    common = [toy_config, '--iterations', '12', '--cfg-options', *SGD]
    assert tool.main([*common, '--out', str(out)]) == 0
    monkeypatch.setattr(tool, 'record_gradients', None)
    again = tmp_path / 'again'
    reuse = ['--reuse', str(out / 'stats.npz'), '--lr', '2', '--out', str(again)]
    assert tool.main([toy_config, *reuse, '--cfg-options', *SGD]) == 0
    first, second = (
        {a['name']: a['clip_grad'] for a in json.loads((f / 'advice.json').read_text())['advice']}
        for f in (out, again)
    )
    assert first['agc']['clip_factor'] >= 50 * second['agc']['clip_factor']
    assert first['norm']['max_norm'] > 5 * second['norm']['max_norm']
    assert 'lr=2' in (again / 'norm.py').read_text()


@pytest.mark.parametrize('rule', ['value', 'norm', 'agc', 'zclip'])
def test_its_configs_train(tool, train_tool, toy_config, tmp_path, rule):
    out = tmp_path / 'out'
    # The toy's own clip_grad has another type and other keys, which must not be left over.
    assert tool.main([toy_config, '--iterations', '10', '--lr', '0.3', '--out', str(out)]) == 0
    config = out / f'{rule}.py'
    cfg = Config.fromfile(str(config))
    assert cfg.optim_wrapper.optimizer == dict(type='Adam', lr=0.3)
    assert cfg.optim_wrapper.type == 'GClipOptimWrapper'
    train_tool.main(
        [str(config), '--work-dir', str(tmp_path / rule), '--cfg-options',
         f'experiment_name={tmp_path.name}_{rule}']
    )  # fmt: skip
    assert (tmp_path / rule / 'iter_12.pth').exists()


def test_a_hook_that_clips_gives_way(tool, train_tool, toy_config, tmp_path):
    hooked = tmp_path / 'hooked.py'
    hooked.write_text(
        f'_base_ = [{toy_config!r}]\n'
        "optim_wrapper = dict(_delete_=True, type='OptimWrapper',\n"
        "                     optimizer=dict(type='SGD', lr=0.01))\n"
        "custom_hooks = [dict(type='GClipSpikeHook'),\n"
        "                dict(type='GClipHook', clip_grad=dict(type='NormClip', max_norm=3))]\n"
    )
    out = tmp_path / 'out'
    assert tool.main([str(hooked), '--iterations', '10', '--out', str(out)]) == 0
    cfg = Config.fromfile(str(out / 'norm.py'))
    assert [hook.type for hook in cfg.custom_hooks] == ['GClipSpikeHook']
    train_tool.main([str(out / 'norm.py'), '--work-dir', str(tmp_path / 'run')])
    assert (tmp_path / 'run' / 'iter_12.pth').exists()


def test_mixed_precision_and_exclude_are_kept(tool, toy_config, tmp_path):
    wrapper = dict(
        type='AmpOptimWrapper',
        optimizer=dict(type='SGD'),
        clip_grad=dict(type='AGC', exclude=['x']),
    )
    stats_of = advise(load_stats(_stats(tool, toy_config, tmp_path)), 0.1)
    agc = next(a for a in stats_of if a.name == 'agc')
    norm = next(a for a in stats_of if a.name == 'norm')
    text = tool.config_text(agc, wrapper, 0.1, 'base.py')
    assert "type='GClipAmpOptimWrapper'" in text
    assert "exclude=['x']" in text and '_delete_=True' in text
    assert 'exclude' not in tool.config_text(norm, wrapper, 0.1, 'base.py')
    assert tool.base_name('mmdet::a/b.py', tmp_path) == 'mmdet::a/b.py'
    assert tool.base_name(str(tmp_path / 'c.py'), tmp_path / 'x' / 'y') == '../../c.py'


def _stats(tool, toy_config, tmp_path):
    out = tmp_path / 'stats'
    arguments = [toy_config, '--iterations', '10', '--out', str(out), '--cfg-options', *SGD]
    assert tool.main(arguments) == 0
    return out / 'stats.npz'


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['gone.py'], "config 'gone.py' is not there"),
        (['{toy}', '--reuse', 'gone.npz'], '--reuse'),
        (['{toy}', '--cfg-options', 'optim_wrapper=None'], 'no optim_wrapper'),
    ],
)
def test_errors_in_one_line(tool, toy_config, capsys, arguments, message):
    assert tool.main([text.format(toy=toy_config) for text in arguments]) == 1
    error = capsys.readouterr().err
    assert message in error and 'Traceback' not in error


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['x', '--lr', '0'], '--lr must be above 0'),
        (['x', '--lr', 'nan'], '--lr must be above 0'),
        (['x', '--iterations', '3'], 'at least 10'),
        (['x', '--reuse', 'a', '--record-lr', '1'], 'does nothing'),
    ],
)
def test_arguments_that_make_no_sense(tool, capsys, arguments, message):
    with pytest.raises(SystemExit):
        tool.main(arguments)
    assert message in capsys.readouterr().err
