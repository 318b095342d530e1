"""Log keys in the message hub and in MMEngine's files, and the device reads for them."""

import copy
import importlib.util
import io
import json
import math
import pickle
import sys
import types
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.runner import Runner

from gclip_mm.clipping import LOG_KEYS
from gclip_mm.clipping.step.record import make_record
from gclip_mm.compat import LOADS_WEIGHTS_ONLY
from gclip_mm.engine.hub import (
    RecordLog,
    drop_records,
    record_log,
    train_history,
    train_scalars,
)
from tests.engine.door_task import door_config, history, read_scalars, run_door

SGD = dict(type='SGD', lr=0.02, momentum=0.9)
NORM = dict(type='norm', max_norm=0.5)
CPU = torch.device('cpu')


@pytest.fixture
def hub(request):
    return MessageHub.get_instance(request.node.nodeid)


def add(log, *norms):
    for norm in norms:
        log.append_record(make_record(CPU, norm, norm / 2, 0.5, 1.0, 1.0, 0.0))


# -- the buffers -------------------------------------------------------------------------------


def test_values_equal_those_of_a_plain_buffer(hub):
    log = record_log(hub)
    plain = HistoryBuffer()
    for norm in (3.0, 1.0, 2.0, 5.0):
        add(log, norm)
        plain.update(norm)
        ours = hub.get_scalar('train/grad_norm')
        assert ours.current() == plain.current()
        for name in ('mean', 'max', 'min'):
            for window in (None, 1, 2, 9):
                assert ours.statistics(name, window) == plain.statistics(name, window)
    assert ours.data[0].tolist() == [3.0, 1.0, 2.0, 5.0] and ours.data[1].tolist() == [1.0] * 4


def test_one_device_read_for_all_steps_and_keys(hub):
    log = record_log(hub)
    add(log, *range(10))
    with mock.patch.object(torch, 'stack', wraps=torch.stack) as stack:
        for key in LOG_KEYS:
            hub.get_scalar(f'train/{key}').mean(10)
        assert stack.call_count == 1
        hub.get_scalar('train/grad_norm').mean(10)
        assert stack.call_count == 1
        add(log, 11.0)
        hub.get_scalar('train/clip_coef').current()
        hub.get_scalar('train/grad_norm').current()
        assert stack.call_count == 2


def test_unread_records_are_flushed_and_none_is_lost(hub):
    """The number of records on the device is bounded."""
    log = record_log(hub)
    add(log, *range(3000))
    assert len(log._pending) < 1100
    assert hub.get_scalar('train/grad_norm').data[0].tolist() == list(range(3000))


def test_other_writers_may_use_the_key(hub):
    log = record_log(hub)
    add(log, 1.0, 2.0)
    hub.update_scalar('train/grad_norm', 9.0)
    add(log, 3.0)
    assert hub.get_scalar('train/grad_norm').data[0].tolist() == [1.0, 2.0, 9.0, 3.0]


def test_earlier_history_is_kept(hub):
    hub.update_scalar('train/grad_norm', 7.0)
    add(record_log(hub), 8.0)
    assert hub.get_scalar('train/grad_norm').data[0].tolist() == [7.0, 8.0]


def test_long_history_is_truncated_like_a_plain_one(hub):
    log = record_log(hub)
    add(log, 1.0)
    buffer = hub.get_scalar('train/grad_norm')
    buffer.max_length = 5
    add(log, *range(10, 20))
    assert buffer.data[0].tolist() == [15, 16, 17, 18, 19] and len(buffer.data[1]) == 5


@pytest.mark.parametrize(
    'clone',
    [
        copy.deepcopy,
        copy.copy,
        lambda buffer: pickle.loads(pickle.dumps(buffer)),
        lambda buffer: _through_a_file(buffer),
    ],
    ids=['deepcopy', 'copy', 'pickle', 'torch.save, weights_only'],
)
def test_copy_is_a_plain_buffer_with_all_values(clone, hub):
    log = record_log(hub)
    add(log, 1.0, 2.0)
    twin = clone(hub.get_scalar('train/grad_norm'))
    assert type(twin) is HistoryBuffer
    assert twin.data[0].tolist() == [1.0, 2.0] and twin.mean() == 1.5
    assert twin.statistics('max') == 2.0
    twin.update(5.0)
    add(log, 3.0)
    assert hub.get_scalar('train/grad_norm').data[0].tolist() == [1.0, 2.0, 3.0]


def _through_a_file(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=LOADS_WEIGHTS_ONLY)


def test_pickled_buffer_names_no_class_of_this_package(hub):
    add(record_log(hub), 1.0)
    assert b'gclip' not in pickle.dumps(hub.get_scalar('train/grad_norm'))


def test_hub_state_survives_a_checkpoint(hub):
    log = record_log(hub)
    add(log, 1.0, 2.0)
    state = _through_a_file(hub.state_dict())
    hub.load_state_dict(state)
    assert type(hub.get_scalar('train/grad_norm')) is HistoryBuffer
    add(log, 3.0)
    assert hub.get_scalar('train/grad_norm').data[0].tolist() == [1.0, 2.0, 3.0]


def test_record_log_is_shared_per_hub_and_prefix():
    a, b = (MessageHub.get_instance(f'test_one_log {name}') for name in 'ab')
    assert record_log(a) is record_log(a)
    assert record_log(a) is not record_log(b) and record_log(a) is not record_log(a, 'gen.')
    assert record_log(a, 'gen.').keys[0] == 'train/gen.grad_norm'
    assert isinstance(record_log(a), RecordLog)


# -- a run's files -----------------------------------------------------------------------------


@pytest.mark.parametrize('door', ['wrapper', 'hook'])
def test_json_and_text_log_hold_every_key(door, tmp_path):
    runner = run_door(door, tmp_path, NORM, SGD, log_level='INFO')
    lines = read_scalars(tmp_path)
    assert [line['step'] for line in lines] == [2, 4, 6, 8, 10, 12]
    for key in LOG_KEYS:
        values = history(runner, f'train/{key}')
        if 'grad_norm' in key:
            # MMEngine logs the mean of such keys over a window, 10 iterations by default,
            values = [np.mean(values[max(end - 10, 0) : end]) for end in range(1, 13)]
        # and of all others the latest value.
        assert [line[key] for line in lines] == pytest.approx(values[1::2], rel=1e-12)
    (text,) = tmp_path.rglob('*.log')
    logged = [line for line in text.read_text().splitlines() if '(train)' in line]
    assert len(logged) == 6
    for key in LOG_KEYS:
        assert all(f'{key}: ' in line for line in logged)


def test_tensorboard_gets_every_key(tmp_path):
    pytest.importorskip('tensorboard')
    accumulator = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    run_door(
        'wrapper',
        tmp_path,
        NORM,
        SGD,
        visualizer=dict(vis_backends=[dict(type='TensorboardVisBackend')]),
    )
    (file,) = tmp_path.rglob('events.out.tfevents.*')
    events = accumulator.EventAccumulator(str(file))
    events.Reload()
    assert set(LOG_KEYS) <= set(events.Tags()['scalars'])


def test_wandb_gets_every_key(tmp_path, monkeypatch):
    """The backend passes the same dict to ``wandb.log``; a stub replaces the module."""
    seen = []
    wandb = types.ModuleType('wandb')
    wandb.init = lambda **kwargs: None
    wandb.log = lambda scalars, **kwargs: seen.append(dict(scalars))
    wandb.define_metric = wandb.watch = lambda *args, **kwargs: None
    wandb.config = types.SimpleNamespace(update=lambda *args, **kwargs: None)
    wandb.run = types.SimpleNamespace(
        dir=str(tmp_path), _label=lambda **kwargs: None, log_code=lambda **kwargs: None
    )
    wandb.join = wandb.finish = lambda *args: None
    monkeypatch.setitem(sys.modules, 'wandb', wandb)
    run_door(
        'wrapper',
        tmp_path,
        NORM,
        SGD,
        visualizer=dict(vis_backends=[dict(type='WandbVisBackend')]),
    )
    assert len(seen) == 6 and all(set(LOG_KEYS) <= line.keys() for line in seen)


@pytest.mark.parametrize('interval', [1, 3, 4])
def test_values_are_read_once_per_log_interval(interval, tmp_path):
    counts = []
    flush = RecordLog.flush

    def counted(self):
        if self._pending:
            counts.append(len(self._pending))
        flush(self)

    with mock.patch.object(RecordLog, 'flush', counted):
        run_door('wrapper', tmp_path, NORM, SGD, default_hooks__logger__interval=interval)
    assert counts == [interval] * (12 // interval)


def test_resumed_run_continues_the_history(tmp_path):
    saving = dict(
        default_hooks__checkpoint=dict(type='CheckpointHook', interval=6, by_epoch=False),
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=6),
        resumable=True,
    )
    whole = run_door('wrapper', tmp_path / 'whole', NORM, SGD, resumable=True)
    run_door('wrapper', tmp_path / 'a', NORM, SGD, **saving)
    path = tmp_path / 'a' / 'iter_6.pth'
    again = run_door(
        'wrapper', tmp_path / 'b', NORM, SGD, load_from=str(path), resume=True, resumable=True
    )
    for key in LOG_KEYS:
        assert history(again, f'train/{key}') == history(whole, f'train/{key}')


def test_checkpoint_loads_without_this_package(tmp_path):
    """torch's safe loader reads it, and the history is MMEngine's class."""
    run_door(
        'wrapper',
        tmp_path,
        dict(type='AdaGC', warmup_steps=2),
        SGD,
        default_hooks__checkpoint=dict(type='CheckpointHook', interval=12, by_epoch=False),
    )
    path = tmp_path / 'iter_12.pth'
    checkpoint = torch.load(path, weights_only=LOADS_WEIGHTS_ONLY)
    buffer = checkpoint['message_hub']['log_scalars']['train/grad_norm']
    assert type(buffer) is HistoryBuffer and len(buffer.data[0]) == 12
    assert checkpoint['optimizer']['gclip']['routes'][0]['rule'] == 'AdaGC'
    # No class of this package; only the config text names the type.
    pickled = pickle_classes(path)
    assert not [name for name in pickled if 'gclip' in name]


def pickle_classes(path):
    """The classes that a checkpoint names."""
    import pickletools
    import zipfile

    with zipfile.ZipFile(path) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith('data.pkl'))
        data = archive.read(name)
    return [arg for op, arg, _ in pickletools.genops(data) if op.name == 'GLOBAL']


# -- mmdet's plot ------------------------------------------------------------------------------


@pytest.fixture
def analyze_logs(monkeypatch):
    """mmdet's script; it uses seaborn only for the style of the plot."""
    mmdet = pytest.importorskip('mmdet')
    folder = Path(mmdet.__file__).parent / '.mim' / 'tools' / 'analysis_tools'
    if not (folder / 'analyze_logs.py').is_file():
        pytest.skip('mmdet was installed without its tools')
    if importlib.util.find_spec('seaborn') is None:
        seaborn = types.SimpleNamespace(set_style=lambda style: None)
        monkeypatch.setitem(sys.modules, 'seaborn', seaborn)
    spec = importlib.util.spec_from_file_location('analyze_logs', folder / 'analyze_logs.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize('door', ['wrapper', 'hook'])
def test_mmdet_analyze_logs_plots_every_key(door, analyze_logs, tmp_path, monkeypatch):
    clip_grad = dict(type='AGC', clip_factor=0.02, nonfinite='skip')
    run_door(door, tmp_path, clip_grad, SGD)
    (path,) = tmp_path.rglob('scalars.json')
    drawn = {}
    plot = analyze_logs.plt.plot
    monkeypatch.setattr(
        analyze_logs.plt,
        'plot',
        lambda x, y, **kwargs: drawn.update({kwargs['label']: list(y)}) or plot(x, y, **kwargs),
    )
    out = tmp_path / 'curves.png'
    argv = ['analyze_logs.py', 'plot_curve', str(path), '--out', str(out), '--keys', *LOG_KEYS]
    monkeypatch.setattr(sys, 'argv', argv + ['--legend', *LOG_KEYS])
    analyze_logs.main()
    assert out.stat().st_size > 10_000
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert drawn == {key: [line[key] for line in lines] for key in LOG_KEYS}


def test_nonfinite_step_is_logged_as_nan(tmp_path):
    """The json holds NaN, as stock MMEngine writes it."""
    data = dict(dataset=dict(type='RandomData', spoiled={'images/003.jpg': math.inf}))
    runner = Runner.from_cfg(door_config('wrapper', tmp_path, NORM, SGD, train_dataloader=data))
    runner.train()
    bad = np.array(history(runner, 'train/nonfinite'), dtype=bool)
    norms = np.array(history(runner, 'train/grad_norm'))
    assert bad.any() and not np.isfinite(norms[bad]).any() and np.isfinite(norms[~bad]).all()
    lines = read_scalars(tmp_path)
    assert any(line['nonfinite'] > 0 for line in lines)


# -- a resume in a process that has trained beyond the checkpoint -------------------------------


def test_resume_drops_outstanding_records(hub):
    log = RecordLog(hub, '')
    add(log, 1.0, 2.0)
    saved = copy.deepcopy(hub.state_dict())
    add(log, 3.0, 4.0)
    hub.load_state_dict(saved)
    add(log, 5.0)
    assert hub.get_scalar('train/grad_norm').data[0].tolist() == [1.0, 2.0, 5.0]
    assert hub.get_scalar('train/nonfinite').data[1].tolist() == [1, 1, 1]


# -- reading and dropping histories ---------------------------------------------------------------


def test_train_history_gives_the_numbers_of_a_train_key(hub):
    for value in (1.0, 2.0):
        hub.update_scalar('train/loss_a', value)
    hub.update_scalar('val/loss_b', 3.0)
    assert train_scalars(hub) == ['loss_a']
    assert list(train_history(hub, 'loss_a')) == [1.0, 2.0]
    assert list(train_history(hub, 'loss_b')) == []


def test_drop_records_removes_only_the_records_of_a_prefix(hub):
    for prefix in ('', 'gen.'):
        add(record_log(hub, prefix), 1.0)
    hub.update_scalar('train/loss', 1.0)
    drop_records(hub, 'gen.')
    assert not any(key.startswith('gen.') for key in train_scalars(hub))
    assert {'grad_norm', 'loss'} <= set(train_scalars(hub))
