"""GClipOptimWrapper compared with MMEngine's wrapper, and its state."""

import copy
import io
import logging
import math
import pickle
from contextlib import nullcontext
from unittest.mock import MagicMock

import pytest
import torch
from mmengine.logging import MessageHub, MMLogger
from mmengine.optim import OptimWrapper, build_optim_wrapper
from torch import nn
from torch.optim import Optimizer

from gclip_mm import ClipConfigError, GClipAmpOptimWrapper, GClipOptimWrapper, attach
from gclip_mm.clipping import LOG_KEYS
from tests.clipping.cases import CASES, equal, make_optimizer
from tests.clipping.steps import Failure, fail, gradients, make_params, set_grads


@pytest.fixture(autouse=True)
def hub(request):
    """A message hub of the test's own, as a runner makes one."""
    return MessageHub.get_instance(request.node.nodeid)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Linear(4, 6)
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        return self.head(self.backbone(x).tanh())


def train(wrapper, model, steps=6, start=0):
    for step in range(start, start + steps):
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        with wrapper.optim_context(model):
            loss = model(x).square().sum()
        wrapper.update_params(loss)


def last(hub, key):
    return hub.get_scalar(f'train/{key}').current()


# -- like the stock wrapper --------------------------------------------------------------------


@pytest.mark.parametrize(
    'clip_grad',
    [
        dict(max_norm=0.5),
        dict(max_norm=0.5, norm_type=1),
        dict(max_norm=0.5, norm_type='inf'),
        dict(type='norm', max_norm=0.5, norm_type=3, error_if_nonfinite=True),
        dict(max_norm=math.inf),
        dict(type='value', clip_value=0.1),
    ],
    ids=str,
)
@pytest.mark.parametrize('optimizer', ['SGD', 'AdamW'])
def test_stock_clip_grad_is_bit_identical_and_logs_the_same(clip_grad, optimizer, hub):
    ours, theirs = Net(), Net()
    a, b = (getattr(torch.optim, optimizer)(net.parameters(), lr=0.01) for net in (ours, theirs))
    train(GClipOptimWrapper(a, clip_grad=clip_grad), ours)
    mine = None if 'clip_value' in clip_grad else hub.get_scalar('train/grad_norm').data[0]
    hub = MessageHub.get_instance(f'{hub.instance_name} stock')
    train(OptimWrapper(b, clip_grad=copy.deepcopy(clip_grad)), theirs)
    assert equal(dict(ours.state_dict()), dict(theirs.state_dict()))
    if mine is not None:
        assert mine.tolist() == hub.get_scalar('train/grad_norm').data[0].tolist()


def test_attributes_match_the_stock_wrapper():
    optimizer = torch.optim.SGD(Net().parameters(), lr=0.1)
    wrapper = GClipOptimWrapper(optimizer, accumulative_counts=3)
    assert wrapper.optimizer is optimizer and wrapper.clip_grad_kwargs is None
    assert isinstance(wrapper, OptimWrapper) and wrapper._accumulative_counts == 3
    wrapper = GClipOptimWrapper(optimizer, clip_grad=dict(type='norm', max_norm=35, norm_type=2))
    assert wrapper.clip_grad_kwargs == dict(max_norm=35, norm_type=2)
    assert wrapper.grad_name == 'grad_norm'
    # Stock MMEngine does not clip if it is empty.
    wrapper = GClipOptimWrapper(optimizer, clip_grad=dict(type='AGC'))
    assert wrapper.clip_grad_kwargs == dict(clip_factor=0.01, eps=1e-3)


@pytest.mark.parametrize('clip_grad', [[], {}, 3, dict(type='nrom', max_norm=1)], ids=repr)
def test_invalid_clip_grad_raises_stock_and_value_errors(clip_grad):
    optimizer = torch.optim.SGD(Net().parameters(), lr=0.1)
    for kind in (AssertionError, ValueError):
        with pytest.raises(kind, match='unknown type|If `clip_grad` is not None'):
            GClipOptimWrapper(optimizer, clip_grad=clip_grad)


def test_clip_grad_method_clips_once_and_logs(hub):
    """MMEngine documents the method: it clips at once, and the step does not clip again."""
    ours, theirs = make_params(), make_params()
    a, b = (torch.optim.SGD(some, lr=0.1, momentum=0.9) for some in (ours, theirs))
    wrapper = GClipOptimWrapper(a, clip_grad=dict(max_norm=0.1))
    for step in range(3):
        set_grads(ours, gradients(step))
        set_grads(theirs, gradients(step))
        wrapper._clip_grad()
        norm = torch.nn.utils.clip_grad_norm_(theirs, 0.1)
        assert equal([p.grad for p in ours], [p.grad for p in theirs])
        assert last(hub, 'grad_norm') == float(norm)
        if step == 1:
            # Dropped: the next gradients are new ones.
            wrapper.zero_grad()
            continue
        wrapper.step()
        b.step()
        assert equal([p.data for p in ours], [p.data for p in theirs])
        assert len(hub.get_scalar('train/grad_norm').data[0]) == step + 1


def test_clip_grad_method_without_a_rule_does_nothing():
    wrapper = GClipOptimWrapper(torch.optim.SGD(make_params(), lr=0.1))
    wrapper._clip_grad()
    wrapper.step()


def test_mocked_optimizer_works():
    optimizer = MagicMock(spec=Optimizer)
    optimizer.param_groups = []
    wrapper = GClipOptimWrapper(optimizer)
    wrapper.step(closure=None)
    optimizer.step.assert_called_once_with(closure=None)
    wrapper.zero_grad(set_to_none=False)
    optimizer.zero_grad.assert_called_once_with(set_to_none=False)


def test_step_and_zero_grad_pass_kwargs_on():
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    wrapper = GClipOptimWrapper(optimizer, clip_grad=dict(max_norm=1.0))
    seen = []
    x = torch.ones(1, 4)

    def closure():
        seen.append(True)
        return torch.zeros(())

    wrapper.update_params(
        model(x).sum(), step_kwargs=dict(closure=closure), zero_kwargs=dict(set_to_none=False)
    )
    assert seen and all((p.grad == 0).all() for p in model.parameters())


def test_wrapper_builds_from_a_config():
    model = Net()
    cfg = dict(
        type='GClipOptimWrapper',
        optimizer=dict(type='SGD', lr=0.1),
        clip_grad=dict(type='AGC', exclude=['head']),
        paramwise_cfg=dict(custom_keys=dict(head=dict(lr_mult=0.5))),
    )
    before = copy.deepcopy(cfg)
    wrapper = build_optim_wrapper(model, cfg)
    assert type(wrapper) is GClipOptimWrapper and cfg == before
    # Built without the model; MMEngine's runner and models bind it on first use.
    assert not wrapper.engine.is_bound
    train(wrapper, model, 1)
    assert wrapper.engine.is_bound


def test_unmatched_pattern_is_refused_before_the_first_step():
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    wrapper = GClipOptimWrapper(optimizer, clip_grad=dict(max_norm=1.0, exclude=['haed']))
    with pytest.raises(ClipConfigError, match=r"exclude\[0\]: 'haed' matches no.*'head'"):
        wrapper.initialize_count_status(model, 0, 10)


def test_new_wrapper_replaces_the_engine_of_the_old_one():
    """Of stock wrappers, only the one that steps clips."""
    params = make_params()
    optimizer = torch.optim.SGD(params, lr=0.1)
    GClipOptimWrapper(optimizer, clip_grad=dict(max_norm=1e-6))
    wrapper = GClipOptimWrapper(optimizer, clip_grad=dict(max_norm=0.1))
    set_grads(params, gradients(0))
    wrapper.step()
    norm = math.sqrt(sum(float((p.grad**2).sum()) for p in params))
    assert norm == pytest.approx(0.1, rel=1e-5) and len(optimizer._optimizer_step_pre_hooks) == 1
    GClipOptimWrapper(optimizer)
    assert not optimizer._optimizer_step_pre_hooks


def test_schedule_without_a_runner_starts_at_iteration_0(hub):
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    wrapper = GClipOptimWrapper(
        optimizer, clip_grad=dict(max_norm=1.0, schedule=dict(type='linear', end=5))
    )
    train(wrapper, model, 3)
    values = hub.get_scalar('train/clip_threshold').data[0]
    assert values.tolist() == pytest.approx([1 / 3, 1 / 2, 2 / 3])


@pytest.mark.parametrize('config', [dict(max_norm=0.1), dict(type='AGC', clip_factor=0.02)])
def test_copied_wrapper_clips(config):
    """torch copies an optimizer without its hooks."""
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    wrapper = GClipOptimWrapper(optimizer, clip_grad=config)
    train(wrapper, model, 2)
    model_copy, wrapper_copy = copy.deepcopy((model, wrapper))
    assert wrapper_copy.optimizer is not optimizer
    train(wrapper, model, 3, start=2)
    train(wrapper_copy, model_copy, 3, start=2)
    assert equal(dict(model_copy.state_dict()), dict(model.state_dict()))
    assert wrapper_copy.engine.steps == wrapper.engine.steps == 5
    assert wrapper_copy.engine.stats() == wrapper.engine.stats()


# -- exceptions --------------------------------------------------------------------------------


@pytest.mark.parametrize('spoil', [None, math.nan])
@pytest.mark.parametrize('fused', [False, True])
@pytest.mark.parametrize('where', ['hook', 'kernel'])
def test_failed_step_leaves_optimizer_clean(where, fused, spoil, monkeypatch):
    """A step that is left out does not get as far as the error."""
    params = make_params()
    optimizer = torch.optim.SGD(params, lr=0.1, momentum=0.9, fused=fused)
    wrapper = GClipOptimWrapper(optimizer, clip_grad=dict(max_norm=0.1))
    before = vars(optimizer).keys() | set()
    set_grads(params, gradients(0, spoil))
    with monkeypatch.context() as patch:
        if where == 'kernel':
            patch.setattr(torch.optim.SGD, '_init_group', fail)
        else:
            hook = optimizer.register_step_pre_hook(fail)
        with pytest.raises(Failure) if spoil is None else nullcontext():
            wrapper.step()
    if where == 'hook':
        hook.remove()
    assert wrapper.engine.last_skipped is (spoil is not None)
    assert vars(optimizer).keys() == before
    assert all(p.grad is not None for p in params)
    set_grads(params, gradients(1))
    wrapper.step()
    fresh = make_params()
    other = torch.optim.SGD(fresh, lr=0.1, momentum=0.9, fused=fused)
    set_grads(fresh, gradients(1))
    GClipOptimWrapper(other, clip_grad=dict(max_norm=0.1)).step()
    assert equal([p.data for p in params], [p.data for p in fresh])


# -- state -------------------------------------------------------------------------------------


@pytest.mark.parametrize('case', CASES)
def test_resumed_run_equals_uninterrupted_run(case, request):
    config = CASES[case]

    def build(name):
        MessageHub.get_instance(f'{request.node.nodeid} {name}')
        model = Net()
        optimizer = make_optimizer(config, model.parameters())
        return model, GClipOptimWrapper(optimizer, clip_grad=config)

    whole, wrapper = build('whole')
    train(wrapper, whole, 8)
    first, first_wrapper = build('first')
    train(first_wrapper, first, 4)
    state = first_wrapper.state_dict()
    assert 'gclip' in state
    file = io.BytesIO()
    torch.save([first.state_dict(), state], file)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    second, second_wrapper = build('second')
    second.load_state_dict(weights)
    second_wrapper.load_state_dict(state)
    # The dict is unchanged: a caller may load it into another wrapper too.
    assert 'gclip' in state
    train(second_wrapper, second, 4, start=4)
    assert equal(dict(second.state_dict()), dict(whole.state_dict()))
    assert second_wrapper.engine.stats() == wrapper.engine.stats()


def test_stock_and_our_wrapper_load_each_others_state():
    ours, theirs = Net(), Net()
    wrapper = GClipOptimWrapper(
        torch.optim.SGD(ours.parameters(), lr=0.1, momentum=0.9),
        clip_grad=dict(type='AdaGC', warmup_steps=2),
    )
    stock = OptimWrapper(torch.optim.SGD(theirs.parameters(), lr=0.3, momentum=0.9))
    train(wrapper, ours, 3)
    stock.load_state_dict(wrapper.state_dict())
    assert stock.get_lr() == dict(lr=[0.1])
    buffers = [state['momentum_buffer'] for state in stock.optimizer.state.values()]
    assert equal(buffers, [state['momentum_buffer'] for state in wrapper.optimizer.state.values()])
    train(stock, theirs, 2)
    wrapper.load_state_dict(stock.state_dict())
    train(wrapper, ours, 2)


def test_state_without_clipping_equals_stock():
    optimizer = torch.optim.SGD(Net().parameters(), lr=0.1)
    assert GClipOptimWrapper(optimizer).state_dict() == optimizer.state_dict()


def test_unused_clipping_state_is_dropped_with_a_warning(hub, caplog):
    logger = MMLogger.get_instance(hub.instance_name, logger_name='gclip_test')
    logger.addHandler(caplog.handler)
    optimizer = torch.optim.SGD(Net().parameters(), lr=0.1)
    state = GClipOptimWrapper(optimizer, clip_grad=dict(max_norm=1.0)).state_dict()
    GClipOptimWrapper(optimizer).load_state_dict(state)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and 'clip_grad is not set' in record.message


def test_resume_without_clipping_drops_its_log_keys(hub):
    """Otherwise MMEngine would log the last numbers of the resumed hub until the end."""
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    wrapper = GClipOptimWrapper(optimizer, clip_grad=dict(max_norm=1.0))
    train(wrapper, model, 2)
    hub.load_state_dict(copy.deepcopy(hub.state_dict()))
    hub.update_scalar('train/loss', 1.0)
    assert {f'train/{key}' for key in LOG_KEYS} <= set(hub.log_scalars)
    GClipOptimWrapper(optimizer).load_state_dict(wrapper.state_dict())
    assert set(hub.log_scalars) == {'train/loss'}


def test_state_of_another_rule_is_refused():
    def build(config):
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        wrapper = GClipOptimWrapper(optimizer, clip_grad=config)
        train(wrapper, model, 2)
        return wrapper

    state = build(dict(type='AdaGC')).state_dict()
    with pytest.raises(ValueError, match=r"rules \['AdaGC'\], this run has \['AutoClip'\]"):
        build(dict(type='AutoClip')).load_state_dict(state)
    # Rules without state may be exchanged.
    build(dict(type='AGC')).load_state_dict(build(dict(max_norm=1.0)).state_dict())


# -- the log -----------------------------------------------------------------------------------


def test_every_log_key_is_written(hub):
    params = [nn.Parameter(torch.zeros(2))]
    wrapper = GClipOptimWrapper(torch.optim.SGD(params, lr=0.1), clip_grad=dict(max_norm=2.0))
    params[0].grad = torch.tensor([3.0, 4.0])
    wrapper.step()
    assert set(hub.log_scalars) == {f'train/{key}' for key in LOG_KEYS}
    assert last(hub, 'grad_norm') == 5.0 and last(hub, 'clip_threshold') == 2.0
    assert last(hub, 'grad_norm_post') == pytest.approx(2.0)
    assert last(hub, 'clip_fraction') == 1.0 and last(hub, 'nonfinite') == 0.0


@pytest.mark.parametrize('kind', [GClipOptimWrapper, GClipAmpOptimWrapper])
def test_pickled_wrapper_clips(kind):
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = dict(type='linear', start_factor=0.1, end=3)
    rule = dict(type='NormClip', max_norm=1.0, schedule=schedule)
    wrapper = pickle.loads(pickle.dumps(kind(optimizer=optimizer, clip_grad=rule)))
    params = wrapper.optimizer.param_groups[0]['params']
    wrapper.update_params(sum(p.sum() for p in params) * 100)
    assert wrapper.engine.stats()['grad_norm_post'] == pytest.approx(0.1, rel=1e-3)


def test_copied_wrapper_follows_the_clock_of_the_runner(hub):
    model = Net()
    schedule = dict(type='linear', start_factor=0.1, end=100)
    wrapper = GClipOptimWrapper(
        torch.optim.SGD(model.parameters(), lr=0.1),
        clip_grad=dict(type='NormClip', max_norm=10.0, schedule=schedule),
    )
    model, wrapper = copy.deepcopy((model, wrapper))
    for iteration, threshold in ((0, 1.0), (50, 5.545454), (150, 10.0)):
        hub.update_info('iter', iteration)
        train(wrapper, model, 1)
        assert wrapper.engine.stats()['clip_threshold'] == pytest.approx(threshold)


def test_log_of_a_clip_hook_is_kept_on_load(hub):
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    wrapper = GClipOptimWrapper(optimizer, clip_grad=dict(max_norm=1.0))
    train(wrapper, model, 2)
    state = wrapper.state_dict()
    wrapper.engine.remove()
    unclipped = GClipOptimWrapper(optimizer)
    attach(optimizer, dict(max_norm=1.0))
    unclipped.load_state_dict(state)
    assert f'train/{LOG_KEYS[0]}' in hub.log_scalars
