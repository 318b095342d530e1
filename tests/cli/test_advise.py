"""The advisor on a toy: a rate that blows up is lowered, and its configs train."""

from __future__ import annotations

import json

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn

from gclip_mm.analysis.advice import advise
from gclip_mm.analysis.advice_files import base_name, config_text
from gclip_mm.analysis.gradient_stats import load_stats
from gclip_mm.cli import advise as tool
from gclip_mm.cli import train as train_command


class LinearModel(nn.Module):
    """Another model than the toy's."""

    def __init__(self):
        super().__init__()
        self.one = nn.Linear(4, 1)


SGD = ['optim_wrapper.optimizer.type=SGD', 'optim_wrapper.optimizer.lr=0.02']


def test_printed_and_written_advice_agree(toy_config, tmp_path, capsys):
    out = tmp_path / 'out'
    arguments = [toy_config, '--iterations', '12', '--out', str(out), '--cfg-options', *SGD]
    assert tool.main(arguments) == 0
    text = capsys.readouterr().out
    advice = json.loads((out / 'advice.json').read_text())
    assert advice['lr'] == 0.02 and advice['steps'] == 12
    stats = load_stats(out / 'stats.npz')
    expected = advise(stats, 0.02, 0.0)
    first, *others = advice['advice']
    assert (first['name'], first['clip_grad']) == ('auto', dict(type='Auto'))
    assert [item['clip_grad'] for item in others] == [a.clip_grad for a in expected]
    assert text.index('Auto, recommended') < text.index("The config's own") < text.index('Value:')
    for item in advice['advice']:
        for number in item['clip_grad'].values():
            assert str(number) in text
        assert item['reason'].split()[0] in text
    assert (out / 'distributions.png').stat().st_size > 30_000
    assert set(advice['module_grad_norm']) == {'net.0', 'net.2'}
    assert advice['grad_norm']['p100'] == pytest.approx(stats.norm.max())


def test_reuse_advises_another_rate_without_training(toy_config, tmp_path, capsys, monkeypatch):
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


def test_thresholds_are_compared_with_auto(toy_config, tmp_path, capsys):
    """The config's own threshold too; every number follows from the written statistics."""
    out = tmp_path / 'out'
    arguments = [toy_config, '--iterations', '12', '--lr', '3', '--out', str(out), '--json']
    assert tool.main([*arguments, '--cfg-options', *SGD]) == 0
    advice = json.loads(capsys.readouterr().out)
    stats = load_stats(out / 'stats.npz')
    auto, *others = advice['advice']
    lengths = auto['effect']['norm_after']
    assert lengths['p10'] <= lengths['p50'] <= lengths['p90'] < np.median(stats.norm)
    assert auto['effect']['norm_before']['p50'] == pytest.approx(np.median(stats.norm))
    assert auto['against_auto'] is None and auto['effect']['units'] == auto['clipped'] > 0
    norm = next(item for item in others if item['name'] == 'norm')
    after = np.minimum(stats.norm, norm['clip_grad']['max_norm'])
    assert norm['effect']['norm_after']['p50'] == pytest.approx(np.median(after), rel=1e-4)
    own = advice['own']
    assert own['clip_grad'] == dict(type='NormClip', max_norm=0.5)
    assert own['effect']['norm_after']['p90'] == pytest.approx(0.5, rel=1e-4)
    for item in (*others, own):
        longer = f'{item["against_auto"]["longer"]:.3g} times as long as after Auto'
        assert longer in item.get('text', item.get('reason'))


def test_auto_is_explained_by_the_movement_of_an_adaptive_optimizer(toy_config, tmp_path, capsys):
    out = tmp_path / 'out'
    assert tool.main([toy_config, '--iterations', '12', '--out', str(out)]) == 0
    text = ' '.join(capsys.readouterr().out.replace('#', ' ').split())
    assert 'Auto bounds the update' in text and 'shortened the movement of' in text
    advice = json.loads((out / 'advice.json').read_text())
    assert {item['effect']['of'] for item in advice['advice']} == {'updates', 'gradients'}
    assert all(item['against_auto'] is None for item in advice['advice'])
    assert advice['own']['against_auto'] is None


def test_own_clipping_of_a_hook_is_found_and_may_be_unknown(toy_config, tmp_path, capsys):
    hooked = tmp_path / 'hooked.py'
    hooked.write_text(
        f'_base_ = [{toy_config!r}]\n'
        "optim_wrapper = dict(_delete_=True, type='OptimWrapper',\n"
        "                     optimizer=dict(type='SGD', lr=0.01))\n"
        "custom_hooks = [dict(type='GClipHook', clip_grad=dict(type='SpikeClip'))]\n"
    )
    assert tool.main([str(hooked), '--iterations', '10', '--out', str(tmp_path / 'out')]) == 0
    text = capsys.readouterr().out
    assert "own: type='SpikeClip'" in text and 'cannot be computed' in text


def test_statistics_of_another_model_are_refused(toy_config, tmp_path, capsys):
    stats = _stats(toy_config, tmp_path)
    other = tmp_path / 'other.py'
    model = "dict(_delete_=True, type='LinearModel')"
    other.write_text(f'_base_ = [{toy_config!r}]\nmodel = {model}\n')
    MODELS.register_module(name='LinearModel', module=LinearModel, force=True)
    assert tool.main([str(other), '--reuse', str(stats), '--out', str(tmp_path / 'x')]) == 1
    assert 'recorded with another model' in capsys.readouterr().err


@pytest.mark.parametrize('rule', ['auto', 'value', 'norm', 'agc', 'zclip'])
def test_written_configs_train(toy_config, tmp_path, rule):
    out = tmp_path / 'out'
    # The toy's own clip_grad has another type and other keys, which must not be left over.
    assert tool.main([toy_config, '--iterations', '10', '--lr', '0.3', '--out', str(out)]) == 0
    config = out / f'{rule}.py'
    cfg = Config.fromfile(str(config))
    assert cfg.optim_wrapper.optimizer == dict(type='Adam', lr=0.3)
    assert cfg.optim_wrapper.type == 'GClipOptimWrapper'
    train_command.main(
        [str(config), '--work-dir', str(tmp_path / rule), '--cfg-options',
         f'experiment_name={tmp_path.name}_{rule}']
    )  # fmt: skip
    assert (tmp_path / rule / 'iter_12.pth').exists()


def test_written_config_drops_a_clip_hook(toy_config, tmp_path):
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
    train_command.main([str(out / 'norm.py'), '--work-dir', str(tmp_path / 'run')])
    assert (tmp_path / 'run' / 'iter_12.pth').exists()


def test_mixed_precision_and_exclude_are_kept(toy_config, tmp_path):
    wrapper = dict(
        type='AmpOptimWrapper',
        optimizer=dict(type='SGD'),
        clip_grad=dict(type='AGC', exclude=['x']),
    )
    stats_of = advise(load_stats(_stats(toy_config, tmp_path)), 0.1)
    agc = next(a for a in stats_of if a.name == 'agc')
    norm = next(a for a in stats_of if a.name == 'norm')
    text = config_text(agc, wrapper, 0.1, 'base.py')
    assert "type='GClipAmpOptimWrapper'" in text
    assert "exclude=['x']" in text and '_delete_=True' in text
    assert 'exclude' not in config_text(norm, wrapper, 0.1, 'base.py')
    assert base_name('mmdet::a/b.py', tmp_path) == 'mmdet::a/b.py'
    assert base_name(str(tmp_path / 'c.py'), tmp_path / 'x' / 'y') == '../../c.py'


def _stats(toy_config, tmp_path):
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
def test_errors_are_one_line(toy_config, capsys, arguments, message):
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
def test_invalid_arguments_are_rejected(capsys, arguments, message):
    with pytest.raises(SystemExit):
        tool.main(arguments)
    assert message in capsys.readouterr().err
