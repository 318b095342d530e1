"""apply_clip: the settings that it keeps, replaces and refuses."""

from __future__ import annotations

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import AmpOptimWrapper, OptimWrapper, build_optim_wrapper
from torch import nn

import gclip_mm
from gclip_mm.engine.apply_clip import load_clipped, read_recipe


def config(**optim_wrapper) -> Config:
    optim_wrapper.setdefault('optimizer', dict(type='SGD', lr=0.1))
    return Config(dict(optim_wrapper=optim_wrapper))


def test_apply_clip_changes_only_the_clipping():
    cfg = config(
        type='OptimWrapper',
        optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05),
        paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
        accumulative_counts=4,
        clip_grad=dict(max_norm=35, norm_type=2),
    )
    result = gclip_mm.apply_clip(cfg, dict(type='AGC', clip_factor=0.02))
    assert result is cfg
    assert cfg.optim_wrapper.to_dict() == dict(
        type='GClipOptimWrapper',
        optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05),
        paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
        accumulative_counts=4,
        clip_grad=dict(type='AGC', clip_factor=0.02),
    )
    assert cfg.custom_imports['imports'] == ['gclip_mm']
    wrapper = build_optim_wrapper(nn.Linear(2, 2), cfg.optim_wrapper)
    assert isinstance(wrapper, gclip_mm.GClipOptimWrapper)
    assert len(wrapper.optimizer.param_groups) == 2


@pytest.mark.parametrize('kind', ['AmpOptimWrapper', AmpOptimWrapper])
def test_amp_wrapper_stays_an_amp_wrapper(kind):
    cfg = config(type=kind, dtype='bfloat16', loss_scale=512.0)
    gclip_mm.apply_clip(cfg, 'norm')
    assert cfg.optim_wrapper.type == 'GClipAmpOptimWrapper'
    assert cfg.optim_wrapper.dtype == 'bfloat16'
    assert cfg.optim_wrapper.loss_scale == 512.0


def test_wrapper_type_may_be_a_class_or_missing():
    for cfg in (config(type=OptimWrapper), config()):
        gclip_mm.apply_clip(cfg, 'type=value,clip_value=0.1')
        assert cfg.optim_wrapper.type == 'GClipOptimWrapper'


def test_every_member_of_an_optim_wrapper_dict_is_clipped():
    member = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1))
    cfg = Config(
        dict(optim_wrapper=dict(constructor='Mine', generator=member, discriminator=dict(member)))
    )
    gclip_mm.apply_clip(cfg, 'agc')
    for name in ('generator', 'discriminator'):
        assert cfg.optim_wrapper[name].type == 'GClipOptimWrapper'
        assert cfg.optim_wrapper[name].clip_grad.type == 'AGC'
    assert cfg.optim_wrapper.constructor == 'Mine'


def test_package_is_added_to_custom_imports():
    cfg = config()
    cfg.custom_imports = dict(imports='mine', allow_failed_imports=True)
    gclip_mm.apply_clip(cfg, 'norm')
    gclip_mm.apply_clip(cfg, 'agc')
    assert cfg.custom_imports == dict(imports=['mine', 'gclip_mm'], allow_failed_imports=True)


@pytest.mark.parametrize('kind', ['UnregisteredWrapper'])
def test_unknown_wrapper_is_refused_and_unchanged(kind):
    cfg = config(type=kind, clip_grad=dict(max_norm=1))
    with pytest.raises(gclip_mm.ClipConfigError, match=f'optim_wrapper.type.*{kind}.*GClipHook'):
        gclip_mm.apply_clip(cfg, 'norm')
    assert cfg.optim_wrapper.type == kind
    assert cfg.optim_wrapper.clip_grad == dict(max_norm=1)


@pytest.mark.parametrize('cfg', [Config({}), Config(dict(optimizer=dict(type='SGD', lr=1)))])
def test_config_without_optimizer_wrapper_is_refused(cfg):
    with pytest.raises(gclip_mm.ClipConfigError, match='no optim_wrapper'):
        gclip_mm.apply_clip(cfg, 'norm')


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('type=AGC,clip_factor=0.01', dict(type='AGC', clip_factor=0.01)),
        ('max_norm=35, norm_type=inf', dict(max_norm=35, norm_type='inf')),
        (
            'type=AGC,exclude=[fc_cls, ^head\\.],nonfinite=zero',
            dict(type='AGC', exclude=['fc_cls', '^head\\.'], nonfinite='zero'),
        ),
        (
            "type=norm,max_norm=1,rules=[{'match': '^a', 'type': 'AGC'}]",
            dict(type='norm', max_norm=1, rules=[{'match': '^a', 'type': 'AGC'}]),
        ),
        (
            'max_norm=1,schedule=dict(type="linear",start_factor=0.1,end=500)',
            dict(max_norm=1, schedule=dict(type='linear', start_factor=0.1, end=500)),
        ),
        (
            "type=ChainClip,clips=[dict(type='AGC'), dict(max_norm=10)],exclude=[bias]",
            dict(type='ChainClip', clips=[dict(type='AGC'), dict(max_norm=10)], exclude=['bias']),
        ),
        ('type=ZClip,max_norm=none', dict(type='ZClip', max_norm=None)),
        ('type=value,clip_value=1e-2', dict(type='value', clip_value=0.01)),
    ],
)
def test_inline_recipe_is_parsed(text, expected):
    assert read_recipe(text) == expected


@pytest.mark.parametrize(
    ('recipe', 'message'),
    [
        ('ag', "did you mean 'agc'"),
        ('AGC', "did you mean 'agc' or 'type=AGC'"),
        ('GradientStabilizer', "mean 'gradient_stabilizer' or 'type=GradientStabilizer'"),
        ('max_norm=dict(open)', 'max_norm'),
        ('no/such/file.py', 'is not there'),
        ('type=AGC,0.01', 'key=value'),
        ('type=AGX', 'unknown type'),
        ('type=AGC,clip_facter=1', 'clip_factor'),
        ('type=norm,max_norm=-1', 'max_norm'),
    ],
)
def test_invalid_recipe_is_explained(recipe, message):
    cfg = config()
    with pytest.raises(gclip_mm.ClipConfigError, match=message):
        gclip_mm.apply_clip(cfg, recipe)
    assert cfg.optim_wrapper.get('type') in (None, 'OptimWrapper')


def test_recipe_file_without_clip_grad_is_refused(tmp_path):
    path = tmp_path / 'empty.py'
    path.write_text("optim_wrapper = dict(type='GClipOptimWrapper')\n")
    with pytest.raises(gclip_mm.ClipConfigError, match='clip_grad'):
        gclip_mm.apply_clip(config(), str(path))


# -- keys from --cfg-options -------------------------------------------------------------------


def test_options_override_the_recipe():
    recipe = dict(type='NormClip', max_norm=10, exclude=['bias', 'norm'])
    options = {
        'optim_wrapper.clip_grad.max_norm': 3,
        'optim_wrapper.clip_grad.exclude': ['bn'],
        'optim_wrapper.optimizer.lr': 7,
    }
    cfg = config(clip_grad=dict(max_norm=35))
    gclip_mm.apply_clip(cfg, recipe, options)
    assert cfg.optim_wrapper.clip_grad.to_dict() == dict(
        type='NormClip', max_norm=3, exclude=['bn']
    )
    assert recipe == dict(type='NormClip', max_norm=10, exclude=['bias', 'norm'])
    assert cfg.optim_wrapper.optimizer.lr == 0.1


def test_options_of_one_member_apply_only_to_it():
    member = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1))
    cfg = Config(dict(optim_wrapper=dict(constructor='Mine', a=member, b=dict(member))))
    gclip_mm.apply_clip(cfg, 'max_norm=10', {'optim_wrapper.b.clip_grad.max_norm': 2})
    assert [cfg.optim_wrapper[name].clip_grad.max_norm for name in 'ab'] == [10, 2]
    # Options without a name apply to all members.
    gclip_mm.apply_clip(
        cfg,
        'max_norm=10',
        {'optim_wrapper.clip_grad.max_norm': 3, 'optim_wrapper.b.clip_grad.max_norm': 2},
    )
    assert [cfg.optim_wrapper[name].clip_grad.max_norm for name in 'ab'] == [3, 2]
    assert 'clip_grad' not in cfg.optim_wrapper


def test_load_clipped_separates_recipe_and_config_options(tmp_path):
    path = tmp_path / 'c.py'
    path.write_text(
        'model = dict(backbone=dict(depth=50))\n'
        "optim_wrapper = dict(type='OptimWrapper', clip_grad=None,\n"
        "                     optimizer=dict(type='SGD', lr=1))\n"
    )
    options = {'optim_wrapper.optimizer.lr': 7, 'model.backbone': dict(depth=18)}
    plain = load_clipped(str(path), None, options, None, 'none')
    assert plain.optim_wrapper.optimizer.lr == 7 and plain.optim_wrapper.clip_grad is None
    for more in ({'optim_wrapper.clip_grad.max_norm': 3}, {}):
        cfg = load_clipped(str(path), 'max_norm=10', {**options, **more}, None, 'none')
        assert cfg.model.backbone.depth == 18 and cfg.optim_wrapper.optimizer.lr == 7
        assert cfg.optim_wrapper.clip_grad.max_norm == (3 if more else 10)
    assert load_clipped(str(path), 'agc', None, None, 'none').optim_wrapper.clip_grad.type == 'AGC'
    for whole in ({'optim_wrapper.clip_grad': None}, {'optim_wrapper': dict(clip_grad=dict())}):
        with pytest.raises(gclip_mm.ClipConfigError, match='leave one of them out'):
            load_clipped(str(path), 'agc', whole, None, 'none')


def test_options_reach_the_strategy():
    cfg = config(type='DeepSpeedOptimWrapper')
    cfg.strategy = dict(type='DeepSpeedStrategy')
    gclip_mm.apply_clip(cfg, 'max_norm=10', {'optim_wrapper.clip_grad.max_norm': 2})
    assert cfg.strategy.gradient_clipping == 2


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'optim_wrapper.clip_grad.clip_factor': 3}, "no key 'clip_factor'"),
        ({'optim_wrapper.clip_grad': dict(max_norm=1)}, 'leave one of them out'),
        ({'optim_wrapper.clip_grad': None}, 'leave one of them out'),
        ({'optim_wrapper': dict(clip_grad=dict(max_norm=3))}, 'leave one of them out'),
    ],
)
def test_options_that_conflict_with_the_recipe_are_refused(options, message):
    cfg = config()
    with pytest.raises(gclip_mm.ClipConfigError, match=message):
        gclip_mm.apply_clip(cfg, 'max_norm=10', options)
    assert 'clip_grad' not in cfg.optim_wrapper


# -- configs that clip by GClipHook ------------------------------------------------------------


@pytest.mark.parametrize('kind', ['GClipHook', 'gclip_mm.GClipHook', gclip_mm.engine.GClipHook])
def test_clip_hook_is_removed(kind):
    cfg = config()
    cfg.custom_hooks = [
        dict(type='EMAHook'),
        dict(type=kind, clip_grad=dict(max_norm=3)),
    ]
    gclip_mm.apply_clip(cfg, 'agc')
    assert [hook.type for hook in cfg.custom_hooks] == ['EMAHook']
    assert cfg.optim_wrapper.type == 'GClipOptimWrapper'


def test_clip_hook_of_an_unknown_wrapper_gets_the_recipe():
    class MyWrapper(OptimWrapper):
        pass

    cfg = config(type=MyWrapper)
    cfg.custom_hooks = [dict(type='GClipHook', clip_grad=dict(max_norm=3))]
    gclip_mm.apply_clip(cfg, 'type=AGC', {'optim_wrapper.clip_grad.clip_factor': 0.5})
    assert cfg.optim_wrapper.type is MyWrapper and 'clip_grad' not in cfg.optim_wrapper
    assert cfg.custom_hooks[0].clip_grad.to_dict() == dict(type='AGC', clip_factor=0.5)


def test_resulting_config_trains_with_the_bound():
    cfg = config(clip_grad=dict(max_norm=35))
    gclip_mm.apply_clip(cfg, 'max_norm=0.5')
    model = nn.Linear(4, 4)
    before = model.weight.detach().clone()
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    wrapper.update_params(model(torch.full((2, 4), 100.0)).square().sum())
    step = torch.cat([(model.weight - before).flatten()])
    assert 0 < step.norm() <= 0.1 * 0.5 * (1 + 1e-5)


def test_deepspeed_gets_norm_rule_as_gradient_clipping():
    cfg = config(type='DeepSpeedOptimWrapper')
    cfg.strategy = dict(type='DeepSpeedStrategy', gradient_clipping=1.0)
    gclip_mm.apply_clip(cfg, 'max_norm=0.1')
    assert cfg.strategy.gradient_clipping == 0.1
    assert cfg.optim_wrapper.type == 'DeepSpeedOptimWrapper'
    assert 'clip_grad' not in cfg.optim_wrapper


def test_colossalai_gets_norm_rule_as_max_norm():
    cfg = config(type='ColossalAIOptimWrapper')
    cfg.strategy = dict(type='ColossalAIStrategy', plugin=dict(type='LowLevelZeroPlugin'))
    gclip_mm.apply_clip(cfg, 'max_norm=0.1')
    assert cfg.strategy.plugin.max_norm == 0.1


@pytest.mark.parametrize(
    'recipe',
    ['agc', 'max_norm=1,norm_type=inf', 'max_norm=1,nonfinite=zero', 'max_norm=1,exclude=[bias]'],
)
def test_deepspeed_refuses_other_rules(recipe):
    cfg = config(type='DeepSpeedOptimWrapper')
    cfg.strategy = dict(type='DeepSpeedStrategy')
    with pytest.raises(gclip_mm.ClipConfigError, match='gradient_clipping'):
        gclip_mm.apply_clip(cfg, recipe)
    assert 'gradient_clipping' not in cfg.strategy


def test_colossalai_plugin_given_by_name_is_refused():
    cfg = config(type='ColossalAIOptimWrapper')
    cfg.strategy = dict(type='ColossalAIStrategy', plugin='gemini')
    with pytest.raises(gclip_mm.ClipConfigError, match='max_norm=0.5'):
        gclip_mm.apply_clip(cfg, 'max_norm=0.5')


def test_apex_error_names_the_amp_wrapper():
    with pytest.raises(gclip_mm.ClipConfigError, match='GClipAmpOptimWrapper'):
        gclip_mm.apply_clip(config(type='ApexOptimWrapper'), 'max_norm=0.5')


def test_attach_refuses_a_non_optimizer():
    with pytest.raises(gclip_mm.ClipConfigError, match=r'torch\.optim\.Optimizer, got object$'):
        gclip_mm.attach(object(), dict(max_norm=1))
    engine = type('DeepSpeedEngine', (), {'__module__': 'deepspeed.runtime.engine'})()
    with pytest.raises(gclip_mm.ClipConfigError, match='DeepSpeedEngine.*gradient_clipping'):
        gclip_mm.attach(engine, dict(max_norm=1))
