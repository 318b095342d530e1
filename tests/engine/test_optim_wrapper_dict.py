"""Several optimizers: each is clipped separately and logs under its own name."""

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.logging import MessageHub
from mmengine.model import BaseModel
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper, OptimWrapperDict
from mmengine.registry import HOOKS, MODELS, OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.runner import Runner
from torch import nn

from gclip_mm import ClipConfigError, GClipOptimWrapper
from gclip_mm.clipping import LOG_KEYS
from gclip_mm.compat import LOADS_WEIGHTS_ONLY
from tests.clipping.cases import equal
from tests.engine.door_task import history, read_scalars, weights
from tests.engine.toy_task import toy_config


@MODELS.register_module()
class TinyGan(BaseModel):
    """A generator with a transposed convolution, and a discriminator."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.ConvTranspose2d(1, 3, 2)
        self.discriminator = nn.Linear(3, 1)

    def forward(self, inputs, data_samples, mode='tensor'):
        raise NotImplementedError

    def train_step(self, data, optim_wrapper):
        x = torch.stack([torch.as_tensor(item) for item in data['inputs']]).view(-1, 1, 2, 3)
        d, g = optim_wrapper['discriminator'], optim_wrapper['generator']
        with d.optim_context(self.discriminator):
            fake = self.generator(x).mean((2, 3)).detach()
            d_loss = (self.discriminator(fake) - 1).square().mean()
        d.update_params(d_loss)
        with g.optim_context(self.generator):
            g_loss = self.discriminator(self.generator(x).mean((2, 3))).square().mean() * 10
        g.update_params(g_loss)
        return dict(d_loss=d_loss, g_loss=g_loss)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class PerModule:
    """The constructor that such a model needs, as MMEngine's documentation describes it."""

    def __init__(self, optim_wrapper_cfg, paramwise_cfg=None):
        self.cfgs = optim_wrapper_cfg

    def __call__(self, model):
        wrappers = {}
        for name in ('generator', 'discriminator'):
            cfg = self.cfgs[name].copy()
            wrappers[name] = DefaultOptimWrapperConstructor(cfg)(getattr(model, name))
        return OptimWrapperDict(**wrappers)


@HOOKS.register_module()
class GradientWatch(Hook):
    """Stores the gradients with which the optimizers stepped."""

    def before_run(self, runner):
        self.seen = {}
        for name, wrapper in runner.optim_wrapper.items():
            wrapper.optimizer.register_step_post_hook(
                lambda optimizer, *_, name=name: self.seen.setdefault(name, []).append(
                    [p.grad.clone() for group in optimizer.param_groups for p in group['params']]
                )
            )


def gan_config(work_dir, door, generator, discriminator):
    sgd = dict(type='SGD', lr=0.05)
    kind = 'GClipOptimWrapper' if door == 'wrapper' else 'OptimWrapper'
    members = dict(
        generator=dict(type=kind, optimizer=dict(sgd)),
        discriminator=dict(type=kind, optimizer=dict(sgd)),
    )
    hooks = [dict(type='GradientWatch')]
    if door == 'wrapper':
        members['generator']['clip_grad'] = generator
        members['discriminator']['clip_grad'] = discriminator
    elif door == 'hook':
        hooks.append(dict(type='GClipHook', clip_grad=generator))
    return toy_config(
        str(work_dir),
        model=dict(_delete_=True, type='TinyGan'),
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=6),
        optim_wrapper=dict(_delete_=True, constructor='PerModule', **members),
        param_scheduler=None,
        custom_hooks=hooks,
        default_hooks__checkpoint=dict(
            _delete_=True, type='CheckpointHook', interval=3, by_epoch=False
        ),
    )


def train_gan(work_dir, door='wrapper', generator=None, discriminator=None):
    runner = Runner.from_cfg(gan_config(work_dir, door, generator, discriminator))
    runner.train()
    return runner


def test_each_member_logs_under_its_own_name(tmp_path):
    runner = train_gan(
        tmp_path, generator=dict(max_norm=0.1), discriminator=dict(type='AGC', clip_factor=0.02)
    )
    keys = {f'{name}.{key}' for name in ('generator', 'discriminator') for key in LOG_KEYS}
    for key in keys:
        assert len(history(runner, f'train/{key}')) == 6
    assert not {f'train/{key}' for key in LOG_KEYS} & set(runner.message_hub.log_scalars)
    for line in read_scalars(tmp_path):
        assert keys <= line.keys() and 'generator.lr' in line
    assert set(history(runner, 'train/generator.clip_threshold')) == {0.1}


def test_only_the_member_with_a_rule_is_clipped(tmp_path):
    runner = train_gan(tmp_path, generator=dict(max_norm=1e-3))
    watch = next(hook for hook in runner.hooks if isinstance(hook, GradientWatch))

    def norms(name):
        return [float(torch.cat([g.flatten() for g in grads]).norm()) for grads in watch.seen[name]]

    assert norms('generator') == pytest.approx([1e-3] * 6, rel=1e-2)
    assert min(norms('discriminator')) > 1e-2
    assert 'train/discriminator.grad_norm' not in runner.message_hub.log_scalars


@pytest.mark.parametrize('door', ['wrapper', 'hook'])
def test_members_are_bound_to_the_model(door, tmp_path):
    """Otherwise AGC would confuse inputs and outputs of the transposed convolution."""
    agc = dict(type='AGC', clip_factor=1e-3)
    runner = train_gan(tmp_path, door, agc, agc)
    watch = next(hook for hook in runner.hooks if isinstance(hook, GradientWatch))
    assert all(grads[0].shape == (1, 3, 2, 2) for grads in watch.seen['generator'])
    # Three outputs with one norm each; the transposed layout would have one unit.
    weight = runner.model.generator.weight.detach()
    last = watch.seen['generator'][-1][0]
    ratios = last.square().sum((0, 2, 3)).sqrt() / weight.square().sum((0, 2, 3)).sqrt()
    assert ratios.tolist() == pytest.approx([1e-3] * 3, rel=1e-2)


def test_hook_and_wrappers_give_the_same_weights(tmp_path):
    rule = dict(type='AGC', clip_factor=0.02, exclude=['bias$'])
    runs = [train_gan(tmp_path / door, door, rule, rule) for door in ('wrapper', 'hook')]
    assert equal(weights(runs[0]), weights(runs[1]))
    for name in ('generator', 'discriminator'):
        for key in LOG_KEYS:
            a, b = (history(run, f'train/{name}.{key}') for run in runs)
            assert a == b


def test_hook_refuses_a_member_that_clips(tmp_path):
    cfg = gan_config(tmp_path, 'hook', dict(max_norm=1.0), None)
    cfg.optim_wrapper.discriminator.clip_grad = dict(max_norm=1.0)
    with pytest.raises(ClipConfigError, match="OptimWrapper 'discriminator' clips already"):
        Runner.from_cfg(cfg).train()


@pytest.mark.parametrize(('first', 'second'), [('wrapper', 'hook'), ('hook', 'wrapper')])
def test_state_of_each_member_is_resumed(first, second, tmp_path):
    rule = dict(type='AutoClip', percentile=40, window=9)
    train_gan(tmp_path / 'a', first, rule, rule)
    path = tmp_path / 'a' / 'iter_3.pth'
    state = torch.load(path, weights_only=LOADS_WEIGHTS_ONLY)['optimizer']
    for name in ('generator', 'discriminator'):
        (route,) = state[name]['gclip']['routes']
        assert route['rule'] == 'AutoClip' and int(route['state']['count']) == 3
    cfg = gan_config(tmp_path / 'b', second, rule, rule)
    cfg.load_from, cfg.resume = str(path), True
    runner = Runner.from_cfg(cfg)
    runner.train()
    last = torch.load(tmp_path / 'b' / 'iter_6.pth', weights_only=LOADS_WEIGHTS_ONLY)['optimizer']
    assert int(last['generator']['gclip']['routes'][0]['state']['count']) == 6
    assert len(history(runner, 'train/generator.grad_norm')) == 6


def test_dict_accepts_stock_members():
    MessageHub.get_instance('test_mixed_with_stock_members')
    models = [nn.Linear(2, 1) for _ in range(2)]
    a, b = (torch.optim.SGD(model.parameters(), lr=0.1) for model in models)
    ours = GClipOptimWrapper(a, clip_grad=dict(max_norm=1.0))
    wrappers = OptimWrapperDict(ours=ours, stock=OptimWrapper(b, clip_grad=dict(max_norm=1.0)))
    assert ours.log_prefix == 'ours.'
    wrappers.initialize_count_status(nn.ModuleList(models), 0, 1)
    assert [info.name for info in ours.engine.book.infos] == ['0.weight', '0.bias']
    for (_, wrapper), model in zip(wrappers.items(), models, strict=True):
        wrapper.update_params(model(torch.ones(1, 2)).sum())
    assert wrappers.state_dict().keys() == {'ours', 'stock'}
