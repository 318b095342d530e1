"""``--amp`` changes the precision and nothing else."""

from __future__ import annotations

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS

from gclip_mm.cli import launch
from gclip_mm.cli.launch import explain_amp_on_cpu, use_amp
from gclip_mm.engine import GClipAmpOptimWrapper, GClipOptimWrapper
from gclip_mm.engine.configs import LaunchError

CLIP = dict(type='AGC', clip_factor=0.02)


def wrapper(kind=None, **kwargs) -> dict:
    config = dict(optimizer=dict(type='SGD', lr=0.1), **kwargs)
    return config if kind is None else dict(config, type=kind)


@pytest.mark.parametrize(
    ('before', 'after'),
    [
        (None, 'AmpOptimWrapper'),
        ('OptimWrapper', 'AmpOptimWrapper'),
        ('mmengine.OptimWrapper', 'AmpOptimWrapper'),
        (OptimWrapper, 'AmpOptimWrapper'),
        ('GClipOptimWrapper', 'GClipAmpOptimWrapper'),
        (GClipOptimWrapper, 'GClipAmpOptimWrapper'),
    ],
)
@pytest.mark.parametrize('device', ['cuda', 'cpu'])
def test_amp_replaces_wrapper_by_its_twin(before, after, device, monkeypatch):
    monkeypatch.setattr(launch, 'get_device', lambda: device)
    if device == 'cpu':
        # Stock MMEngine's refuses to train there.
        after = 'GClipAmpOptimWrapper'
    cfg = Config(dict(optim_wrapper=wrapper(before, clip_grad=dict(max_norm=35))))
    use_amp(cfg)
    assert ('custom_imports' in cfg) == after.startswith('GClip')
    assert cfg.optim_wrapper.to_dict() == dict(
        type=after,
        optimizer=dict(type='SGD', lr=0.1),
        clip_grad=dict(max_norm=35),
        loss_scale='dynamic',
    )


@pytest.mark.parametrize('kind', ['AmpOptimWrapper', AmpOptimWrapper, 'GClipAmpOptimWrapper'])
def test_amp_keeps_a_mixed_precision_wrapper(kind):
    config = wrapper(kind, loss_scale=512.0, dtype='bfloat16')
    cfg = Config(dict(optim_wrapper=config))
    use_amp(cfg)
    assert cfg.optim_wrapper.to_dict() == config


def test_amp_converts_each_member_of_a_wrapper_dict(monkeypatch):
    monkeypatch.setattr(launch, 'get_device', lambda: 'cuda')
    cfg = Config(
        dict(
            optim_wrapper=dict(
                constructor='Two',
                generator=wrapper('GClipOptimWrapper', clip_grad=CLIP),
                critic=wrapper('OptimWrapper'),
            )
        )
    )
    use_amp(cfg)
    assert cfg.optim_wrapper.generator.type == 'GClipAmpOptimWrapper'
    assert cfg.optim_wrapper.generator.clip_grad == CLIP
    assert cfg.optim_wrapper.critic.type == 'AmpOptimWrapper'
    assert cfg.optim_wrapper.constructor == 'Two'


def test_amp_rejects_unknown_wrapper_by_name():
    class CentralisedOptimWrapper(OptimWrapper):
        pass

    OPTIM_WRAPPERS.register_module(module=CentralisedOptimWrapper, force=True)
    cfg = Config(dict(optim_wrapper=wrapper('CentralisedOptimWrapper', clip_grad=CLIP)))
    with pytest.raises(LaunchError, match=r"optim_wrapper\.type 'CentralisedOptimWrapper'"):
        use_amp(cfg)
    assert cfg.optim_wrapper.type == 'CentralisedOptimWrapper'


def test_amp_rejects_misspelt_wrapper_by_name():
    cfg = Config(dict(optim_wrapper=wrapper('GclipOptimWraper')))
    with pytest.raises(LaunchError, match="'GclipOptimWraper'.* and GClipOptimWrapper"):
        use_amp(cfg)


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_amp_trains_and_clips_on_a_cpu(train, dtype):
    """The weights after one step of plain SGD show the clipping: ||w1 - w0|| = lr * max_norm."""
    work_dir = train(
        dtype,
        '--amp',
        '--cfg-options',
        f'optim_wrapper.dtype={dtype}',
        # float16 has room for gradients scaled by 2**10 here; with the default of 2**16 the
        # scaler would first have to find that out over several skipped steps.
        'optim_wrapper.loss_scale.init_scale=1024',
        'optim_wrapper.optimizer.type=SGD',
        'optim_wrapper.optimizer.lr=1.0',
        'param_scheduler=None',
        'train_cfg.max_iters=2',
        'default_hooks.checkpoint.interval=1',
    )
    first, second = (torch.load(work_dir / f'iter_{i}.pth')['state_dict'] for i in (1, 2))
    moved = torch.cat([(second[key] - first[key]).flatten() for key in first]).norm()
    assert moved == pytest.approx(0.5, rel=1e-3)


@pytest.mark.skipif(torch.cuda.is_available(), reason='what happens without a GPU')
def test_amp_explains_a_float32_only_operator():
    """The real operator, mmcv's NMS, with the 16-bit scores that autocast hands it."""
    from mmcv.ops import nms

    boxes, scores = torch.tensor([[0.0, 0, 9, 9], [1, 1, 8, 8]]), torch.tensor([0.9, 0.8])
    with pytest.raises(LaunchError, match='--amp on a CPU'), explain_amp_on_cpu(True):
        nms(boxes.bfloat16(), scores.bfloat16(), 0.5)
    with pytest.raises(RuntimeError, match='expected scalar type'), explain_amp_on_cpu(False):
        nms(boxes.bfloat16(), scores.bfloat16(), 0.5)
    with pytest.raises(RuntimeError, match='other'), explain_amp_on_cpu(True):
        raise RuntimeError('other')


@pytest.mark.skipif(torch.cuda.is_available(), reason='what happens without a GPU')
def test_amp_trains_a_stock_wrapper_on_a_cpu(train):
    """By ours, and clipped as its config says."""
    options = ['optim_wrapper.type=OptimWrapper', 'optim_wrapper.clip_grad.type=norm']
    work_dir = train('stock', '--amp', '--cfg-options', *options, 'train_cfg.max_iters=2')
    saved = torch.load(work_dir / 'iter_2.pth')
    assert {'gclip', 'loss_scaler'} <= saved['optimizer'].keys()


def test_twins_are_registered_under_the_names_used():
    assert OPTIM_WRAPPERS.get('GClipAmpOptimWrapper') is GClipAmpOptimWrapper
    assert OPTIM_WRAPPERS.get('AmpOptimWrapper') is AmpOptimWrapper
