"""GClipRuntimeInfoHook writes the same log as the stock hook without its device reads."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.model import BaseModel
from mmengine.registry import HOOKS, MODELS
from mmengine.runner import Runner
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from gclip_mm.compat import LOADS_WEIGHTS_ONLY
from gclip_mm.engine import GClipRuntimeInfoHook
from gclip_mm.engine.hub import DeferredScalars
from tests.engine import door_task  # noqa: F401  registers DoorNet
from tests.engine.left_out_task import on_device_only
from tests.engine.toy_task import toy_config

NORM = dict(type='norm', max_norm=0.5)
OURS = dict(default_hooks__runtime_info=dict(type='GClipRuntimeInfoHook'))
HOOK = {'stock': {}, 'ours': OURS}


@MODELS.register_module()
class MotleyNet(BaseModel):
    """Returns everything that may be logged: tensors of several types and shapes, and numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 1)
        self.steps = 0
        self.running = nn.Parameter(torch.zeros(1), requires_grad=False)

    def forward(self, inputs: list, data_samples: list, mode: str = 'tensor') -> Any:
        return self.layer(torch.stack([torch.as_tensor(item) for item in inputs]))

    def train_step(self, data: Any, optim_wrapper: Any) -> dict[str, Any]:
        self.steps += 1
        loss = self(**self.data_preprocessor(data, True)).square().mean()
        optim_wrapper.update_params(loss)
        # Written in place in every step, like the outputs of a CUDA graph.
        self.running.add_(1)
        outputs = {
            'loss': loss,
            'hits': torch.tensor(self.steps),
            'share': self.steps / 7,
            'loss_half': loss.to(torch.bfloat16),
            'loss_double': loss.double() / 3,
            'loss_in_a_row': loss.reshape(1, 1) * 2,
            'found': torch.tensor(self.steps % 2 == 0),
            'count': self.steps,
            'running': self.running,
            'from_numpy': np.float32(self.steps / 3),
            'an_array': np.array([self.steps]),
            'loss_bad': loss * (float('nan') if self.steps % 5 == 0 else 1),
            # The type changes from step to step.
            'fickle': self.steps / 2 if self.steps % 3 == 0 else loss.detach(),
        }
        if self.steps > 3:
            outputs['late'] = loss.float()
        return outputs


def build(work_dir: Path, which: str, model: str = 'DoorNet', **changes: Any) -> Runner:
    """A run of 12 iterations with one of the hooks."""
    defaults = dict(
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=12), default_hooks__checkpoint=None
    )
    cfg = toy_config(
        str(work_dir),
        NORM,
        model=dict(_delete_=True, type=model),
        **{**defaults, **HOOK[which], **changes},
    )
    return Runner.from_cfg(cfg)


def train(*args: Any, **changes: Any) -> Runner:
    runner = build(*args, **changes)
    runner.train()
    return runner


def histories(hub: MessageHub) -> dict[str, tuple]:
    """Everything in the hub except the times, with order and types."""
    return {
        key: (*buffer.data, buffer.max_length, buffer.data[0].dtype, buffer.data[1].dtype)
        for key, buffer in hub.log_scalars.items()
        if not key.endswith('time')
    }


def assert_same(ours: dict[str, tuple], stock: dict[str, tuple]) -> None:
    assert list(ours) == list(stock)
    for key, (values, counts, *rest) in stock.items():
        np.testing.assert_array_equal(ours[key][0], values, err_msg=key)
        np.testing.assert_array_equal(ours[key][1], counts, err_msg=key)
        assert list(ours[key][2:]) == rest, key


def log_lines(work_dir: Path) -> list[str]:
    """The training lines of the text log, without times of day and durations."""
    (path,) = work_dir.rglob('*.log')
    timing = r'^.*?(?=Iter\(|Epoch\()|eta: \S+\s*|(data_)?time: \S+\s*'
    lines = [line for line in path.read_text().splitlines() if '(train)' in line]
    return [re.sub(timing, '', line) for line in lines]


def json_lines(work_dir: Path) -> list[str]:
    (path,) = work_dir.rglob('scalars.json')
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    # As text, where NaN equals itself.
    return [
        json.dumps({key: value for key, value in line.items() if 'time' not in key})
        for line in lines
    ]


@pytest.mark.parametrize('model', ['DoorNet', 'RandomNet', 'MotleyNet'])
@pytest.mark.parametrize('interval', [1, 5])
def test_log_equals_the_stock_log(model, interval, tmp_path):
    runs = {
        which: train(
            tmp_path / which,
            which,
            model,
            log_level='INFO',
            default_hooks__logger__interval=interval,
            log_processor=dict(
                by_epoch=False,
                window_size=3,
                custom_cfg=[
                    dict(data_src='loss', method_name='max', log_name='loss_max', window_size=4)
                ],
            ),
        )
        for which in HOOK
    }
    lines = log_lines(tmp_path / 'ours')
    assert len(lines) == 12 // interval and 'loss_max' in lines[0] and 'lr: ' in lines[0]
    assert lines == log_lines(tmp_path / 'stock')
    assert json_lines(tmp_path / 'ours') == json_lines(tmp_path / 'stock')
    assert_same(*(histories(runs[which].message_hub) for which in ('ours', 'stock')))


def test_compared_log_is_not_empty(tmp_path):
    """The comparison above would also hold for two empty logs."""
    hub = train(tmp_path, 'ours', 'MotleyNet').message_hub
    assert hub.get_scalar('train/hits').data[0].tolist() == list(range(1, 13))
    assert hub.get_scalar('train/running').data[0].tolist() == list(range(1, 13))
    assert hub.get_scalar('train/hits').data[0].dtype == np.int64
    assert len(hub.get_scalar('train/late').data[0]) == 9
    assert np.isnan(hub.get_scalar('train/loss_bad').data[0]).sum() == 2


def test_validation_log_equals_the_stock_log(tmp_path):
    validation = dict(
        val_cfg=dict(),
        val_dataloader=dict(
            batch_size=4,
            num_workers=0,
            dataset=dict(type='RandomData'),
            sampler=dict(type='DefaultSampler', shuffle=False),
            collate_fn=dict(type='pseudo_collate'),
        ),
        val_evaluator=dict(type='MeanError'),
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=12, val_interval=4),
    )
    runs = [train(tmp_path / which, which, 'RandomNet', **validation) for which in HOOK]
    stock, ours = (histories(run.message_hub) for run in runs)
    assert 'val/loss' in ours
    assert_same(ours, stock)
    assert runs[0].message_hub.runtime_info.keys() == runs[1].message_hub.runtime_info.keys()


# -- checkpoints -------------------------------------------------------------------------------

SAVING = dict(
    default_hooks__checkpoint=dict(
        _delete_=True, type='CheckpointHook', interval=6, by_epoch=False
    ),
    # Longer than the run, so that the checkpoint is the first to fetch the numbers.
    default_hooks__logger__interval=50,
)


def saved_scalars(path: Path) -> dict[str, HistoryBuffer]:
    # weights_only: torch's safe loader, which accepts no class of this package.
    return torch.load(path, weights_only=LOADS_WEIGHTS_ONLY)['message_hub']['log_scalars']


@pytest.mark.parametrize('model', ['DoorNet', 'MotleyNet'])
def test_checkpoints_hold_the_same_histories(model, tmp_path):
    for which in HOOK:
        train(tmp_path / which, which, model, **SAVING)
    for name in ('iter_6.pth', 'iter_12.pth'):
        stock, ours = (saved_scalars(tmp_path / which / name) for which in HOOK)
        assert {type(buffer) for buffer in ours.values()} == {HistoryBuffer}
        hubs = [MessageHub(f'{tmp_path} {i}', scalars) for i, scalars in enumerate((ours, stock))]
        assert_same(*map(histories, hubs))
        assert len(ours['train/loss'].data[0]) == int(re.search(r'\d+', name)[0])


@pytest.mark.parametrize(('first', 'second'), list(itertools.product(HOOK, HOOK)))
def test_each_hook_resumes_the_other(first, second, tmp_path):
    short = dict(train_cfg=dict(type='IterBasedTrainLoop', max_iters=6))
    whole = train(tmp_path / 'whole', 'stock', **SAVING)
    train(tmp_path / 'a', first, **{**SAVING, **short})
    path = str(tmp_path / 'a' / 'iter_6.pth')
    again = train(tmp_path / 'b', second, **SAVING, load_from=path, resume=True)
    assert_same(histories(again.message_hub), histories(whole.message_hub))
    assert len(again.message_hub.get_scalar('train/loss').data[0]) == 12


# -- other readers and writers -----------------------------------------------------------------


@HOOKS.register_module()
class LossReader(Hook):
    """Reads the history of the loss at every step, in every possible way."""

    def __init__(self) -> None:
        self.seen: list[tuple] = []

    def after_train_iter(self, runner: Runner, **_: Any) -> None:
        buffer = runner.message_hub.get_scalar('train/loss')
        self.seen.append(
            (buffer.current(), buffer.mean(3), buffer.max(), buffer.min(2), len(buffer.data[0]))
        )
        runner.message_hub.update_scalar('train/loss', 100.0 + runner.iter)


def test_other_hooks_read_and_write_the_same_history(tmp_path):
    seen = {}
    for which in HOOK:
        runner = train(tmp_path / which, which, custom_hooks=[dict(type='LossReader')])
        seen[which] = next(hook.seen for hook in runner.hooks if isinstance(hook, LossReader))
        assert len(runner.message_hub.get_scalar('train/loss').data[0]) == 24
    assert seen['ours'] == seen['stock'] and len(seen['ours']) == 12


def test_tensor_of_two_numbers_is_refused_like_stock(tmp_path):
    runner = build(tmp_path, 'ours')
    hook = next(hook for hook in runner.hooks if isinstance(hook, GClipRuntimeInfoHook))
    hook._deferred = DeferredScalars(runner.message_hub)
    with pytest.raises(AssertionError):
        hook.after_train_iter(runner, 0, outputs={'loss': torch.ones(2)})


def test_model_without_outputs_logs_no_loss(tmp_path):
    runner = build(tmp_path, 'ours')
    hook = next(hook for hook in runner.hooks if isinstance(hook, GClipRuntimeInfoHook))
    hook._deferred = DeferredScalars(runner.message_hub)
    hook.after_train_iter(runner, 0, outputs=None)
    assert not any(key.startswith('train/loss') for key in runner.message_hub.log_scalars)


# -- reads -------------------------------------------------------------------------------------

#: Python methods of a tensor that copy its value to the host.
READS = ('item', 'tolist', 'cpu', 'numpy', '__float__', '__int__', '__bool__', '__index__')


class CountReads(TorchFunctionMode):
    """Counts the reads of tensors, by function."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: Counter = Counter()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, '__name__', '')
        if name in READS:
            self.reads[name] += 1
        return func(*args, **(kwargs or {}))


class CountScalarReads(TorchDispatchMode):
    """Counts the operator in which every read of a single number ends."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.reads += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def count_reads(tmp_path: Path, which: str, interval: int, **changes: Any) -> list[tuple]:
    """(reads of any kind, scalar reads) of each of 12 steps, by the hook that logs losses."""
    runner = build(tmp_path / which, which, default_hooks__logger__interval=interval, **changes)
    call_hook = runner.call_hook
    counts: list[tuple] = []

    def watched(name: str, **kwargs: Any) -> None:
        if name not in ('before_train_iter', 'after_train_iter'):
            return call_hook(name, **kwargs)
        with CountReads() as reads, CountScalarReads() as scalars:
            call_hook(name, **kwargs)
        if name == 'before_train_iter':
            counts.append((0, 0))
        counts[-1] = (counts[-1][0] + sum(reads.reads.values()), counts[-1][1] + scalars.reads)
        return None

    runner.call_hook = watched
    runner.train()
    assert len(counts) == 12
    return counts


def test_no_device_read_between_two_log_lines(tmp_path):
    """Counts the reads of all hooks; the clipping records are read at the log line too."""
    stock = count_reads(tmp_path, 'stock', interval=4)
    ours = count_reads(tmp_path, 'ours', interval=4)
    assert all(scalars >= 1 for _, scalars in stock)
    assert [scalars for _, scalars in ours] == [0] * 12
    reads = [reads for reads, _ in ours]
    assert reads[:3] == [0] * 3 and reads[4:7] == [0] * 3 and reads[8:11] == [0] * 3
    # One for the losses, one for the record of the clipping.
    assert [reads[k] for k in (3, 7, 11)] == [2] * 3


def test_no_device_read_for_steps_that_only_the_device_knows(tmp_path, monkeypatch):
    """The flags of the steps are read with the log line too, once for all of them."""
    on_device_only(monkeypatch)
    fused = dict(optim_wrapper__optimizer__fused=True)
    reads = [reads for reads, _ in count_reads(tmp_path, 'ours', interval=4, **fused)]
    assert [reads[k] for k in (3, 7, 11)] == [3] * 3
    assert sum(reads) == 9


def test_many_losses_take_one_read_per_dtype(tmp_path):
    """Not one read per number."""
    stock = count_reads(tmp_path, 'stock', interval=4, model='RandomNet')
    ours = count_reads(tmp_path, 'ours', interval=4, model='RandomNet')
    assert sum(scalars for _, scalars in stock) == 3 * 12
    assert sum(reads for reads, _ in ours) == 2 * 3


def test_learning_rate_on_the_device_is_not_read(tmp_path):
    lr = dict(optim_wrapper__optimizer__lr=torch.tensor(0.02), param_scheduler=None)
    stock = count_reads(tmp_path, 'stock', interval=12, **lr)
    ours = count_reads(tmp_path, 'ours', interval=12, **lr)
    assert all(scalars == 2 for _, scalars in stock)
    assert all(scalars == 0 for _, scalars in ours)


def test_unread_numbers_are_flushed(request):
    hub = MessageHub.get_instance(request.node.nodeid)
    log = DeferredScalars(hub)
    for k in range(3000):
        log.append(('train/a', 'train/b'), torch.tensor([k, -k]))
    assert len(log._pending) < 1100
    assert hub.get_scalar('train/a').data[0].tolist() == list(range(3000))
    assert hub.get_scalar('train/b').data[0].tolist() == [-k for k in range(3000)]


def test_hook_replaces_the_stock_hook(tmp_path):
    runner = build(tmp_path, 'ours', custom_hooks=[])
    kinds = [type(hook).__name__ for hook in runner.hooks]
    assert kinds.count('GClipRuntimeInfoHook') == 1 and 'RuntimeInfoHook' not in kinds
    # First, like the stock hook: other hooks read its numbers.
    assert kinds[0] == 'GClipRuntimeInfoHook'
