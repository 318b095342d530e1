"""The log of a run with steps that were left out: averages, and the share of such steps."""

from __future__ import annotations

import copy
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from gclip_mm import GClipHook
from gclip_mm.clipping.step.record import make_record
from gclip_mm.compat import LOADS_WEIGHTS_ONLY
from gclip_mm.engine.hub import StepHistory, Verdict, line_of_log, record_log
from tests.engine.door_task import DOORS, history, read_scalars
from tests.engine.left_out_task import SGD, build_run, on_device_only

FUSED = dict(SGD, fused=True)
OURS = dict(default_hooks__runtime_info=dict(type='GClipRuntimeInfoHook'))
INFO = pytest.mark.parametrize('info', [{}, OURS], ids=['stock info', 'our info'])
LOGGING = pytest.mark.parametrize('door', ['wrapper', 'hook'])
CPU = torch.device('cpu')


def train(work_dir: Path, *args: Any, **kwargs: Any) -> tuple[Runner, list[dict[str, Any]]]:
    """The runner, and the lines of the log."""
    runner = build_run(work_dir, *args, **kwargs)
    runner.train()
    return runner, read_scalars(work_dir)


def averages(runner: Runner, key: str, left_out: set[int]) -> list[float]:
    """What the log has to show of a history: the mean of the last ten steps that were taken."""
    values = history(runner, f'train/{key}')
    return [
        float(np.mean([values[k] for k in range(max(end - 10, 0), end) if k + 1 not in left_out]))
        for end in range(2, 13, 2)
    ]


@INFO
@pytest.mark.parametrize('optimizer', [SGD, FUSED], ids=['plain', 'fused'])
@pytest.mark.parametrize('door', DOORS)
def test_averages_leave_steps_out(door, optimizer, info, tmp_path):
    runner, lines = train(tmp_path, door, bad=(3, 8), optimizer=optimizer, **info)
    # The history is complete.
    assert [math.isnan(v) for v in history(runner, 'train/loss')] == [
        k in (3, 8) for k in range(1, 13)
    ]
    keys = ['loss', 'loss_square', 'loss_weights']
    if door != 'attach':
        keys += ['grad_norm', 'grad_norm_post']
    for key in keys:
        assert [line[key] for line in lines] == pytest.approx(averages(runner, key, {3, 8}))


@INFO
@LOGGING
def test_nonfinite_is_the_share_of_the_interval(door, info, tmp_path):
    _, lines = train(tmp_path, door, bad=(1, 3, 4, 7), **info)
    assert [line['nonfinite'] for line in lines] == [0.5, 1.0, 0.0, 0.5, 0.0, 0.0]
    assert not any(math.isnan(line['loss']) for line in lines)


@LOGGING
def test_nonfinite_does_not_depend_on_other_readers(door, tmp_path):
    """A hook that reads the last value in every iteration, and a log with a hierarchy."""

    @HOOKS.register_module(force=True)
    class Reader(Hook):
        def __init__(self) -> None:
            self.seen: list[float] = []

        def after_train_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
            self.seen.append(float(runner.message_hub.get_scalar('train/nonfinite').current()))

    runner = build_run(
        tmp_path,
        door,
        bad=(3, 4, 5),
        hooks=(dict(type='Reader'),),
        log_processor=dict(log_with_hierarchy=True),
    )
    runner.train()
    lines = read_scalars(tmp_path)
    assert [line['train/nonfinite'] for line in lines] == [0, 1, 0.5, 0, 0, 0]
    (reader,) = (hook for hook in runner.hooks if isinstance(hook, Reader))
    assert reader.seen == [float(k in (3, 4, 5)) for k in range(1, 13)]


def test_every_backend_gets_the_same_share(tmp_path):
    pytest.importorskip('tensorboard')
    accumulator = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    backends = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
    _, lines = train(tmp_path, bad=(3, 5, 6), visualizer=dict(vis_backends=backends))
    (file,) = tmp_path.rglob('events.out.tfevents.*')
    events = accumulator.EventAccumulator(str(file))
    events.Reload()
    board = [event.value for event in events.Scalars('nonfinite')]
    assert board == [line['nonfinite'] for line in lines] == [0, 0.5, 1, 0, 0, 0]


@INFO
@pytest.mark.parametrize('door', DOORS)
def test_losses_of_an_accumulated_step_are_left_out(door, info, tmp_path):
    """All three of its iterations, though the NaN was in the second one."""
    runner, lines = train(tmp_path, door, bad=(5,), wrapper=dict(accumulative_counts=3), **info)
    seen = [line['loss'] for line in lines]
    assert seen[2:] == pytest.approx(averages(runner, 'loss', {4, 5, 6})[2:])
    assert np.isfinite(seen).all()


@INFO
@pytest.mark.parametrize('door', DOORS)
def test_averages_leave_steps_of_a_scaler_out(door, info, tmp_path):
    runner, lines = train(tmp_path, door, bad=(3, 8), scaler=True, **info)
    assert [line['loss'] for line in lines] == pytest.approx(averages(runner, 'loss', {3, 8}))
    if door != 'attach':
        assert [line['nonfinite'] for line in lines] == [0, 0.5, 0, 0.5, 0, 0]
        assert np.isfinite([line['grad_norm'] for line in lines]).all()


@INFO
@LOGGING
def test_averages_leave_steps_out_that_only_the_device_knows(door, info, tmp_path, monkeypatch):
    on_device_only(monkeypatch)
    runner, lines = train(tmp_path, door, bad=(3, 8), optimizer=FUSED, **info)
    for key in ('loss', 'loss_weights', 'grad_norm'):
        assert [line[key] for line in lines] == pytest.approx(averages(runner, key, {3, 8}))
    assert [line['nonfinite'] for line in lines] == [0, 0.5, 0, 0.5, 0, 0]


def test_window_without_a_step_shows_the_stock_number(tmp_path):
    """A run that is dead shows it."""
    processor = dict(log_processor=dict(window_size=2))
    _, lines = train(tmp_path, bad=tuple(range(5, 13)), **processor)
    assert [math.isnan(line['loss']) for line in lines] == [False] * 2 + [True] * 4
    assert [line['nonfinite'] for line in lines] == [0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize('policy', ['zero', 'off'])
def test_nonfinite_step_that_is_taken_stays_in_the_averages(policy, tmp_path):
    _, lines = train(tmp_path, bad=(3,), clip_grad=dict(max_norm=1.0, nonfinite=policy))
    assert math.isnan(lines[1]['loss']) and lines[1]['nonfinite'] >= 0.5


def test_unclipped_run_logs_as_stock(tmp_path):
    runner, lines = train(tmp_path, 'stock', bad=(3,), clip_grad=None)
    assert math.isnan(lines[1]['loss'])
    assert type(runner.message_hub.get_scalar('train/loss')) is HistoryBuffer


@LOGGING
def test_run_files_tell_skipped_steps_from_a_lost_run(door, tmp_path):
    """Half of the steps left out up to the end is no lost run; all of them is one."""
    run_files = pytest.importorskip('gclip_mm.analysis.run_files')
    train(tmp_path / 'half', door, bad=(2, 6, 8, 10, 12))
    half = run_files.read_scalars(tmp_path / 'half')
    assert half.nonfinite_steps() == [2, 6, 8, 10, 12] and half.lost_from() is None
    train(tmp_path / 'lost', door, bad=tuple(range(7, 13)))
    assert run_files.read_scalars(tmp_path / 'lost').lost_from() == 8


# -- resume ------------------------------------------------------------------------------------


@INFO
@LOGGING
def test_resumed_run_logs_as_the_whole_run(door, info, tmp_path):
    def run(name: str, **changes: Any) -> list[dict[str, Any]]:
        saving = dict(
            default_hooks__checkpoint=dict(type='CheckpointHook', interval=6, by_epoch=False)
        )
        _, lines = train(tmp_path / name, door, resumable=True, **info, **{**saving, **changes})
        return lines

    whole = run('whole', bad=(4, 8))
    run('a', bad=(4, 8), train_cfg=dict(type='IterBasedTrainLoop', max_iters=6))
    checkpoint = tmp_path / 'a' / 'iter_6.pth'
    # The model counts its calls from the start of the process.
    again = run('b', bad=(2,), load_from=str(checkpoint), resume=True)
    for line, expected in zip(again, whole[3:], strict=True):
        for key in ('loss_square', 'grad_norm', 'nonfinite', 'clip_coef'):
            assert line[key] == pytest.approx(expected[key], nan_ok=True), key
    saved = torch.load(checkpoint, weights_only=LOADS_WEIGHTS_ONLY)['message_hub']['log_scalars']
    for key in ('train/loss', 'train/grad_norm'):
        assert type(saved[key]) is HistoryBuffer
        assert saved[key].data[1].tolist() == [1, 1, 1, 0, 1, 1]
    assert saved['train/nonfinite'].data[0].tolist() == [0, 0, 0, 1, 0, 0]


# -- the buffer --------------------------------------------------------------------------------


def filled(*values: float, left_out: tuple[int, ...] = ()) -> StepHistory:
    buffer = StepHistory()
    for k, value in enumerate(values):
        buffer.update(value)
        if k in left_out:
            buffer.mark(Verdict(True))
    return buffer


def test_statistics_pass_over_steps_left_out():
    buffer = filled(1.0, math.nan, 5.0, 2.0, left_out=(1,))
    for name, expected in (('mean', 8 / 3), ('max', 5), ('min', 1)):
        assert getattr(buffer, name)() == buffer.statistics(name) == pytest.approx(expected)
    assert buffer.mean(3) == 3.5 and buffer.statistics('mean', window_size=2) == 3.5
    assert buffer.current() == 2.0
    assert buffer.data[1].tolist() == [1, 0, 1, 1] and len(buffer.data[0]) == 4


def test_verdict_may_come_later_and_from_the_device():
    later, device = Verdict(), Verdict(torch.tensor(1.0))
    buffer = filled(1.0, 10.0)
    buffer.mark(later)
    buffer.update(4.0)
    buffer.mark(device)
    buffer.update(3.0)
    assert buffer.mean() == pytest.approx(14 / 3)
    later.left_out = True
    assert buffer.mean() == 2.0


def test_mark_follows_a_value_in_a_truncated_history():
    buffer = filled(1.0)
    buffer.max_length = 3
    for value in (2.0, 3.0, 40.0):
        buffer.update(value)
    buffer.mark(Verdict(True))
    buffer.update(5.0)
    assert buffer.data[0].tolist() == [3.0, 40.0, 5.0] and buffer.mean() == 4.0
    for value in (6.0, 7.0, 8.0):
        buffer.update(value)
    assert buffer.mean() == 7.0


@pytest.mark.parametrize('clone', [copy.copy, copy.deepcopy])
def test_copy_keeps_the_counts(clone):
    twin = clone(filled(1.0, math.nan, left_out=(1,)))
    assert type(twin) is HistoryBuffer and twin.data[1].tolist() == [1, 0]
    assert StepHistory(None, twin).mean() == 1.0


def test_share_is_counted_from_line_to_line(request):
    hub = MessageHub.get_instance(request.node.nodeid)
    log = record_log(hub)

    def add(*flags: int) -> None:
        for flag in flags:
            log.append_record(make_record(CPU, 1, 1, 1, 1, 0, flag), bool(flag))

    def line() -> float:
        with line_of_log(hub):
            return float(hub.get_scalar('train/nonfinite').current())

    add(1, 0, 0, 0)
    assert line() == line() == 0.25
    assert hub.get_scalar('train/nonfinite').current() == 0
    add(1)
    assert line() == line() == 1
    add(0, 1, 1, 0)
    assert line() == 0.5
    # As a log processor with a custom_cfg for the largest value asks.
    assert hub.get_scalar('train/nonfinite').statistics('max', window_size=4) == 1
    state = io.BytesIO()
    torch.save(hub.state_dict(), state)
    state.seek(0)
    add(1)
    hub.load_state_dict(torch.load(state, weights_only=LOADS_WEIGHTS_ONLY))
    add(0, 1)
    assert line() == 0.5


# -- the limit ---------------------------------------------------------------------------------


@pytest.mark.parametrize('door', DOORS)
def test_consecutive_skips_of_a_scaler_end_the_run(door, tmp_path):
    clip_grad = dict(max_norm=1.0, max_consecutive_skips=3)
    runner = build_run(tmp_path, door, bad=(2, 4, 5, 7, 8, 9), clip_grad=clip_grad, scaler=True)
    with pytest.raises(FloatingPointError, match='3 steps in a row'):
        runner.train()
    assert runner.iter == 8
    if door == 'hook':
        (hook,) = (hook for hook in runner.hooks if isinstance(hook, GClipHook))
        assert hook.engines[''].skips.count == 3
