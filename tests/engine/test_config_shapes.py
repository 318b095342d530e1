"""The shapes in which third-party projects write their optimizers, each under ``--clip``.

Every config is loaded from a file and trained for some steps; the true bound is that of SGD without
momentum, whose step is the learning rate times the clipped gradient.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
import textwrap

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.optim.optimizer import DefaultOptimWrapperConstructor
from mmengine.registry import (
    DATASETS,
    MODELS,
    OPTIM_WRAPPER_CONSTRUCTORS,
    OPTIM_WRAPPERS,
    OPTIMIZERS,
)
from torch import nn

from gclip_mm import (
    ClipConfigError,
    GClipAmpOptimWrapper,
    GClipOptimWrapper,
    NonFiniteGradientError,
    apply_clip,
)
from gclip_mm.cli.train import main
from gclip_mm.engine.apply_clip import load_clipped
from tests.plain_project import CONFIG, write_project

BOUND = 0.5
LR = 0.1


class Net(nn.Module):
    """A backbone, a head, and gradients far above the bound."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return 1e3 * self.head(self.backbone(x)).square().sum()


def load(tmp_path, recipe=f'type=NormClip,max_norm={BOUND}', **files):
    """Write config files, load the one that is called ``mine`` and apply the recipe."""
    for name, text in files.items():
        (tmp_path / f'{name}.py').write_text(textwrap.dedent(text))
    return load_clipped(str(tmp_path / 'mine.py'), recipe, None, str(tmp_path / 'work'), 'none')


@contextlib.contextmanager
def project_on_path(folder, name):
    """Make a project's package importable, and forget it afterwards."""
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for module in [n for n in sys.modules if n.split('.')[0] == name]:
            del sys.modules[module]
        for root in (MODELS, DATASETS):
            root._children.pop(name, None)


def moved_by_a_step(wrapper, model, times=1):
    """How far the weights moved, per parameter name."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    wrapper.initialize_count_status(model, 0, times)
    for _ in range(times):
        with wrapper.optim_context(model):
            loss = model(torch.ones(3, 4))
        wrapper.update_params(loss)
    return {name: (p.detach() - before[name]).norm() for name, p in model.named_parameters()}


def total(moved):
    return torch.stack(list(moved.values())).norm().item()


def check_bound(cfg, lr=LR, kind=GClipOptimWrapper):
    model = Net()
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    assert type(wrapper) is kind
    assert total(moved_by_a_step(wrapper, model)) == pytest.approx(lr * BOUND, rel=1e-4)
    return wrapper


# -- how a config is put together ----------------------------------------------------------------
def test_lazy_config_with_classes_as_types(tmp_path, monkeypatch):
    base = f"""
        from mmengine.optim import OptimWrapper
        from torch.optim import SGD
        optim_wrapper = dict(
            type=OptimWrapper, optimizer=dict(type=SGD, lr={LR}), clip_grad=dict(max_norm=35))
    """
    mine = """
        from mmengine.config import read_base
        with read_base():
            from .shared_base import *
        optim_wrapper.update(dict(accumulative_counts=1))
    """
    cfg = load(tmp_path, shared_base=base, mine=mine)
    check_bound(cfg)
    # The config in the work dir has to load and clip as well.
    cfg.dump(str(tmp_path / 'dumped.py'))
    check_bound(Config.fromfile(str(tmp_path / 'dumped.py')))


def test_clip_grad_none_cancels_that_of_the_base(tmp_path):
    base = f"optim_wrapper = dict(optimizer=dict(type='SGD', lr={LR}), clip_grad=dict(max_norm=35))"
    mine = """
        _base_ = './shared_base.py'
        optim_wrapper = dict(type='GClipOptimWrapper', clip_grad=None)
    """
    cfg = load(tmp_path, recipe=None, shared_base=base, mine=mine)
    wrapper = build_optim_wrapper(Net(), cfg.optim_wrapper)
    assert wrapper.engine is None
    check_bound(load(tmp_path))


@pytest.mark.parametrize('where', ['wrapper', 'optimizer'])
def test_deleted_base_settings_stay_deleted(where, tmp_path):
    base = """
        optim_wrapper = dict(
            type='AmpOptimWrapper', loss_scale=512.,
            optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.99)), clip_grad=dict(max_norm=35))
    """
    optimizer = f"type='SGD', lr={LR}"
    mine = (
        f"optim_wrapper = dict(_delete_=True, type='OptimWrapper', optimizer=dict({optimizer}))"
        if where == 'wrapper'
        else f'optim_wrapper = dict(optimizer=dict(_delete_=True, {optimizer}))'
    )
    cfg = load(tmp_path, shared_base=base, mine=f"_base_ = './shared_base.py'\n{mine}")
    assert dict(cfg.optim_wrapper.optimizer) == dict(type='SGD', lr=LR)
    assert ('loss_scale' in cfg.optim_wrapper) is (where == 'optimizer')
    if where == 'wrapper':
        check_bound(cfg)


def test_wrapper_without_a_type(tmp_path):
    mine = f"optim_wrapper = dict(optimizer=dict(type='SGD', lr={LR}), clip_grad=dict(max_norm=9))"
    check_bound(load(tmp_path, mine=mine))


# -- what stands in it ---------------------------------------------------------------------------
def test_error_if_nonfinite_raises_as_in_torch(tmp_path):
    mine = f"""
        optim_wrapper = dict(
            type='GClipOptimWrapper', optimizer=dict(type='SGD', lr={LR}),
            clip_grad=dict(max_norm={BOUND}, error_if_nonfinite=True))
    """
    cfg = load(tmp_path, recipe=None, mine=mine)
    check_bound(cfg)
    model = Net()
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    with pytest.raises(NonFiniteGradientError, match=r'head\.weight'):
        wrapper.initialize_count_status(model, 0, 1)
        wrapper.update_params(model(torch.full((3, 4), float('nan'))))


def test_lr_mult_of_zero_freezes_its_part(tmp_path):
    mine = f"""
        optim_wrapper = dict(
            type='OptimWrapper', optimizer=dict(type='SGD', lr={LR}),
            paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.0))))
    """
    for recipe in ('norm', 'agc', 'auto'):
        cfg = load(tmp_path, recipe=recipe, mine=mine)
        model = Net()
        moved = moved_by_a_step(build_optim_wrapper(model, cfg.optim_wrapper), model, 2)
        assert moved['backbone.weight'] == 0 and moved['backbone.bias'] == 0
        assert moved['head.weight'] > 0
        assert all(p.isfinite().all() for p in model.parameters())


def test_accumulated_steps_are_clipped_once(tmp_path):
    mine = f"""
        optim_wrapper = dict(
            type='OptimWrapper', accumulative_counts=4, optimizer=dict(type='SGD', lr={LR}))
    """
    cfg = load(tmp_path, mine=mine)
    model = Net()
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    # Three of the four iterations of a step change nothing.
    assert total(moved_by_a_step(wrapper, model, 4)) == pytest.approx(LR * BOUND, rel=1e-4)
    assert wrapper.engine.stats()['grad_norm'] > BOUND


@pytest.mark.parametrize('scale', ["'dynamic'", '512.', 'dict(init_scale=64., growth_interval=9)'])
def test_dtype_and_loss_scale_are_kept(scale, tmp_path):
    mine = f"""
        optim_wrapper = dict(
            type='AmpOptimWrapper', dtype='bfloat16', loss_scale={scale},
            optimizer=dict(type='SGD', lr={LR}), clip_grad=dict(max_norm=35, norm_type=2))
    """
    cfg = load(tmp_path, mine=mine)
    wrapper = check_bound(cfg, kind=GClipAmpOptimWrapper)
    assert wrapper.cast_dtype == torch.bfloat16


def test_optimizer_of_another_package_is_kept(tmp_path):
    mine = """
        optim_wrapper = dict(
            type='OptimWrapper', optimizer=dict(type='AdamW8bit', lr=1e-4, block_wise=True))
    """
    cfg = load(tmp_path, mine=mine)
    assert dict(cfg.optim_wrapper.optimizer) == dict(type='AdamW8bit', lr=1e-4, block_wise=True)
    assert cfg.optim_wrapper.type == 'GClipOptimWrapper'


# -- constructors --------------------------------------------------------------------------------
class LayerWise(DefaultOptimWrapperConstructor):
    """As layer-wise decay does it: a group for each layer, with a rate of its own."""

    def add_params(self, params, module, **kwargs):
        decay = self.paramwise_cfg['decay_rate']
        for depth, (name, layer) in enumerate(reversed(list(module.named_children()))):
            group = dict(params=list(layer.parameters()), lr=self.base_lr * decay**depth)
            params.append({**group, 'param_group_name': name, 'lr_scale': decay**depth})


class BatchSized:
    """Takes a key out of ``optimizer`` that the optimizer does not know, and builds by itself."""

    def __init__(self, optim_wrapper_cfg, paramwise_cfg=None):
        self.wrapper, self.base = dict(optim_wrapper_cfg), 64
        self.optimizer = dict(self.wrapper.pop('optimizer'))

    def __call__(self, model):
        batch_size = self.optimizer.pop('batch_size_per_gpu')
        self.optimizer['lr'] *= batch_size / self.base
        groups = [dict(params=[p]) for p in model.parameters()]
        optimizer = OPTIMIZERS.build({**self.optimizer, 'params': groups})
        self.wrapper.setdefault('type', 'OptimWrapper')
        return OPTIM_WRAPPERS.build(self.wrapper, default_args=dict(optimizer=optimizer))


@pytest.fixture(autouse=True)
def project():
    """A project's own constructors, registered as its import would register them."""
    for kind in (LayerWise, BatchSized):
        OPTIM_WRAPPER_CONSTRUCTORS.register_module(module=kind, force=True)
    yield
    for kind in (LayerWise, BatchSized):
        OPTIM_WRAPPER_CONSTRUCTORS.module_dict.pop(kind.__name__)


def test_constructor_that_takes_a_key_out_of_the_optimizer(tmp_path):
    mine = f"""
        optim_wrapper = dict(
            type='OptimWrapper', constructor='BatchSized',
            optimizer=dict(type='SGD', lr={LR}, batch_size_per_gpu=16))
    """
    cfg = load(tmp_path, mine=mine)
    assert cfg.optim_wrapper.optimizer.batch_size_per_gpu == 16
    check_bound(cfg, lr=LR * 16 / 64)


def test_layer_wise_rates_apply_to_one_clipped_gradient(tmp_path):
    mine = f"""
        optim_wrapper = dict(
            type='OptimWrapper', constructor='LayerWise', paramwise_cfg=dict(decay_rate=0.5),
            optimizer=dict(type='SGD', lr={LR}))
    """
    cfg = load(tmp_path, mine=mine)
    model = Net()
    moved = moved_by_a_step(build_optim_wrapper(model, cfg.optim_wrapper), model)
    rates = {name: LR * (0.5 if name.startswith('backbone') else 1.0) for name in moved}
    clipped = torch.stack([moved[name] / rates[name] for name in moved]).norm().item()
    assert clipped == pytest.approx(BOUND, rel=1e-4)


def test_layer_decay_of_mmdetection(tmp_path):
    pytest.importorskip('mmdet.models')
    mine = """
        optim_wrapper = dict(
            type='OptimWrapper',
            constructor='mmdet.LearningRateDecayOptimizerConstructor',
            paramwise_cfg=dict(decay_rate=0.7, decay_type='layer_wise', num_layers=2),
            optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05))
    """
    cfg = load(tmp_path, mine=mine)
    model = nn.Module()
    stages = nn.ModuleList([nn.Sequential(nn.Linear(4, 4))])
    model.backbone = nn.ModuleDict(dict(stages=stages))
    model.head = nn.Linear(4, 2)
    # The stock constructor recognises a backbone by the name of its class.
    model.backbone.__class__ = type('ConvNeXt', (nn.ModuleDict,), {})
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    assert isinstance(wrapper, GClipOptimWrapper) and wrapper.engine is not None
    rates = {group['lr'] for group in wrapper.optimizer.param_groups}
    assert len(rates) > 1, 'the constructor gave each layer its rate'


# -- engines with clipping of their own ----------------------------------------------------------
@pytest.mark.parametrize('given', ['1.0', "'auto'"])
def test_deepspeed_setting_becomes_the_rule(given, tmp_path):
    mine = f"""
        strategy = dict(type='DeepSpeedStrategy', gradient_clipping={given})
        optim_wrapper = dict(
            type='DeepSpeedOptimWrapper', optimizer=dict(type='AdamW', lr=1e-3))
    """
    cfg = load(tmp_path, mine=mine)
    assert cfg.strategy.gradient_clipping == BOUND
    assert (
        cfg.optim_wrapper.type == 'DeepSpeedOptimWrapper' and 'clip_grad' not in cfg.optim_wrapper
    )


def test_deepspeed_refuses_what_its_setting_cannot_say(tmp_path):
    mine = """
        from mmengine.config import read_base
        from mmengine._strategy import DeepSpeedStrategy
        from torch.optim import AdamW
        strategy = dict(type=DeepSpeedStrategy, gradient_clipping='auto')
        optim_wrapper = dict(type='DeepSpeedOptimWrapper', optimizer=dict(type=AdamW, lr=1e-3))
    """
    assert load(tmp_path, mine=mine).strategy.gradient_clipping == BOUND
    with pytest.raises(ClipConfigError, match='gradient_clipping'):
        load(tmp_path, recipe='agc', mine=mine)


def test_flexible_runner_trains_clipped(tmp_path):
    """A single device needs no strategy of DeepSpeed: the wrapper clips."""
    write_project(tmp_path)
    mine = f"""
        {textwrap.indent(CONFIG, ' ' * 8).strip()}
        runner_type = 'FlexibleRunner'
        strategy = dict(type='SingleDeviceStrategy')
        env_cfg = dict()
        optim_wrapper = dict(
            type='OptimWrapper', optimizer=dict(type='SGD', lr={LR}),
            clip_grad=dict(max_norm=35))
    """
    config = tmp_path / 'mine.py'
    config.write_text(textwrap.dedent(mine))
    with project_on_path(tmp_path, 'plainlab'):
        MessageHub._instance_dict.clear()
        flags = ['--work-dir', str(tmp_path / 'run'), '--clip', f'type=NormClip,max_norm={BOUND}']
        assert main([str(config), *flags]) == 0
    (log,) = (tmp_path / 'run').glob('*/vis_data/scalars.json')
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line['grad_norm_post'] for line in lines] == pytest.approx([BOUND] * 6, rel=1e-4)
    assert all(line['grad_norm'] > BOUND for line in lines)


def test_colossalai_setting_becomes_the_rule(tmp_path):
    mine = """
        strategy = dict(
            type='ColossalAIStrategy', plugin=dict(type='LowLevelZeroPlugin', max_norm=1.0))
        optim_wrapper = dict(optimizer=dict(type='HybridAdam', lr=1e-3))
    """
    assert load(tmp_path, mine=mine).strategy.plugin.max_norm == BOUND


def test_fsdp_strategy_clips_in_the_wrapper(tmp_path):
    mine = """
        strategy = dict(type='FSDPStrategy', model_wrapper=dict(auto_wrap_policy=None))
        optim_wrapper = dict(
            type='AmpOptimWrapper', optimizer=dict(type='AdamW', lr=1e-3),
            clip_grad=dict(max_norm=9))
    """
    cfg = load(tmp_path, mine=mine)
    assert cfg.optim_wrapper.type == 'GClipAmpOptimWrapper'
    assert cfg.optim_wrapper.clip_grad.max_norm == BOUND
    assert cfg.strategy.model_wrapper.auto_wrap_policy is None


# -- scopes --------------------------------------------------------------------------------------
@pytest.mark.parametrize('takes_scope', [True, False])
def test_modules_of_a_project_scope_are_registered(takes_scope, tmp_path):
    """Its training tool would call ``register_all_modules``; its registries name no locations."""
    package = tmp_path / 'their_project'
    (package / 'utils').mkdir(parents=True)
    (package / '__init__.py').write_text('')
    (package / 'registry.py').write_text(
        'from mmengine.registry import MODELS as ROOT, Registry\n'
        "MODELS = Registry('model', parent=ROOT, scope='their_project')\n"
    )
    (package / 'nets.py').write_text(
        'from torch import nn\n'
        'from .registry import MODELS\n'
        '@MODELS.register_module()\n'
        'class TheirNet(nn.Linear): pass\n'
    )
    (package / 'utils' / '__init__.py').write_text(
        f'def register_all_modules({"init_default_scope=True" if takes_scope else ""}):\n'
        '    from .. import nets\n'
    )
    mine = f"""
        default_scope = 'their_project'
        optim_wrapper = dict(optimizer=dict(type='SGD', lr={LR}))
    """
    with project_on_path(tmp_path, 'their_project'):
        check_bound(load(tmp_path, mine=mine))
        from their_project.registry import MODELS

        assert MODELS.get('TheirNet').__name__ == 'TheirNet'


def test_scope_that_is_not_installed_is_left_to_mmengine(tmp_path):
    mine = f"""
        default_scope = 'a_package_that_is_not_there'
        optim_wrapper = dict(optimizer=dict(type='SGD', lr={LR}))
    """
    check_bound(load(tmp_path, mine=mine))


# -- kernels that a PyTorch does not have --------------------------------------------------------
def test_fused_is_left_out_where_there_is_no_kernel(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr('gclip_mm.engine.configs.print_log', lambda text, **_: said.append(text))
    monkeypatch.setattr('gclip_mm.engine.configs.lacks_fused', lambda name, device: name == 'SGD')
    mine = f"optim_wrapper = dict(optimizer=dict(type='SGD', lr={LR}, fused=True))"
    cfg = load(tmp_path, mine=mine)
    assert 'fused' not in cfg.optim_wrapper.optimizer
    assert "no fused SGD for the device 'cpu'" in said[0]
    check_bound(cfg)
    mine = f"optim_wrapper = dict(optimizer=dict(type='AdamW', lr={LR}, fused=True))"
    assert load(tmp_path, mine=mine).optim_wrapper.optimizer.fused is True


def test_apply_clip_and_the_flag_agree(tmp_path):
    mine = f"optim_wrapper = dict(optimizer=dict(type='SGD', lr={LR}))"
    flag = load(tmp_path, mine=mine).optim_wrapper
    cfg = Config(dict(optim_wrapper=dict(type=OptimWrapper, optimizer=dict(type='SGD', lr=LR))))
    assert apply_clip(cfg, dict(type='NormClip', max_norm=BOUND)).optim_wrapper == flag
