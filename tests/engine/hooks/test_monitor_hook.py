"""Numbers, images and warnings of the monitor in a run."""

from __future__ import annotations

import json
import logging
import types
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.optim import OptimWrapperDict
from torch import nn

from gclip_mm.clipping import ClipConfigError
from gclip_mm.clipping.step.observers import StepObserver
from gclip_mm.engine import GClipMonitorHook, GClipOptimWrapper
from gclip_mm.engine.hooks.monitor_hook import loss_interval_scalars
from gclip_mm.engine.telemetry.histograms import HIGH, LOW, draw, log_histograms, publish
from gclip_mm.engine.telemetry.observing import observe
from tests.engine.hooks.test_spike_hook import DOORS
from tests.engine.toy_task import run_toy

NORM = dict(type='NormClip', max_norm=0.5)


def run(work_dir: Path, hook: dict | None = None, hooks=(), **changes) -> list[dict]:
    """Train the toy task with a monitor; returns the lines that it wrote."""
    run_toy(
        work_dir,
        custom_hooks=[*hooks, dict(type='GClipMonitorHook', **{'interval': 4, **(hook or {})})],
        **changes,
    )
    (file,) = work_dir.glob('*/vis_data/module_scalars.json')
    return [json.loads(row) for row in file.read_text().splitlines()]


@pytest.mark.parametrize('door', DOORS)
def test_every_entry_point_is_monitored(tmp_path, door):
    rows = run(tmp_path, hook=dict(depth=1, histogram_interval=0), **DOORS[door])
    assert [row['step'] for row in rows] == [4, 8, 12, 16, 20, 24]
    clips = door != 'unclipped'
    for row in rows:
        for module in ('backbone', 'head'):
            assert row[f'module_grad_norm.{module}'] > 0
            assert 0 < row[f'module_update_ratio.{module}'] < 0.2
        fractions = [row[f'module_clip_fraction.{m}'] for m in ('backbone', 'head')]
        assert all(fraction > 0 for fraction in fractions) == clips
    # Names have no slash, because MMEngine uses the prefixes 'train/' and 'val/'.
    assert not any('/' in key for row in rows for key in row)


def test_module_norms_add_up_to_the_logged_norm(tmp_path):
    """MMEngine logs the norm of the step."""
    rows = run(tmp_path, dict(interval=1), clip_grad=NORM, default_hooks__logger__interval=1,
               log_processor=dict(window_size=1))  # fmt: skip
    path = next(tmp_path.glob('*/vis_data/scalars.json'))
    logged = {
        row['step']: row['grad_norm']
        for row in map(json.loads, path.read_text().splitlines())
        if 'grad_norm' in row
    }
    for row in rows:
        norms = [value for key, value in row.items() if key.startswith('module_grad_norm')]
        assert np.linalg.norm(norms) == pytest.approx(logged[row['step']], rel=1e-5)


def test_scalars_json_has_no_module_lines(tmp_path):
    """MMDetection's tools assume that each line is a step with a loss."""
    run(tmp_path, clip_grad=NORM)
    (file,) = tmp_path.glob('*/vis_data/scalars.json')
    rows = [json.loads(row) for row in file.read_text().splitlines()]
    assert all('loss' in row for row in rows) and not any('module' in key for key in rows[0])


def test_nothing_is_measured_between_the_intervals(tmp_path, monkeypatch):
    from gclip_mm.engine.telemetry.module_probe import ModuleProbe

    calls = []
    describe = ModuleProbe._describe
    monkeypatch.setattr(ModuleProbe, '_describe', lambda self: (calls.append(1), describe(self)))
    run(tmp_path, dict(interval=10), clip_grad=NORM)
    assert len(calls) == 2, 'iterations 10 and 20 of 24'


def test_report_follows_the_accumulated_step(tmp_path):
    rows = run(
        tmp_path,
        dict(interval=4, loss_intervals=2),
        clip_grad=NORM,
        optim_wrapper__accumulative_counts=3,
        train_cfg__max_iters=48,
    )
    assert [row['step'] for row in rows][:4] == [6, 9, 12, 18]


def test_monitor_leaves_training_unchanged(tmp_path):
    plain = run_toy(tmp_path / 'a', NORM, custom_hooks=[]).model.state_dict()
    watched = run_toy(
        tmp_path / 'b', NORM, custom_hooks=[dict(type='GClipMonitorHook', interval=1)]
    ).model.state_dict()
    assert all(torch.equal(plain[key], watched[key]) for key in plain)


def test_loss_intervals_match_hand_computed_groups():
    losses = np.array([5.0, 1.0, 3.0, 2.0, 4.0, 6.0, np.nan])
    norms = np.array([50.0, 10.0, 30.0, 20.0, 40.0, 60.0, 1.0])
    assert loss_interval_scalars(losses, norms, 3) == {
        'loss_interval_grad_norm.q1': 15.0,
        'loss_interval_end.q1': 2.0,
        'loss_interval_grad_norm.q2': 35.0,
        'loss_interval_end.q2': 4.0,
        'loss_interval_grad_norm.q3': 55.0,
        'loss_interval_end.q3': 6.0,
    }
    assert loss_interval_scalars(losses, norms, 4) == {}, 'too few steps to tell'


def test_last_loss_interval_shows_the_spoiled_image(tmp_path):
    """A spoiled image has a large loss and a large gradient: the last group shows it."""
    rows = run(
        tmp_path,
        dict(interval=24, loss_intervals=4),
        clip_grad=NORM,
        train_dataloader__dataset__spoiled={'images/013.jpg': 1e3},
    )
    norms = [rows[0][f'loss_interval_grad_norm.q{k}'] for k in range(1, 5)]
    ends = [rows[0][f'loss_interval_end.q{k}'] for k in range(1, 5)]
    assert ends == sorted(ends)
    assert norms[3] > 10 * norms[0]


class _Log(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record) -> None:
        self.messages.append(record.getMessage())


def warnings_of(tmp_path, monkeypatch, hook, **changes) -> list[str]:
    seen: list[str] = []
    attach = GClipMonitorHook.before_train

    def watch_log(self, runner):
        log = _Log()
        log.messages = seen
        runner.logger.addHandler(log)
        attach(self, runner)

    monkeypatch.setattr(GClipMonitorHook, 'before_train', watch_log)
    run(tmp_path, hook, clip_grad=NORM, **changes)
    return [text for text in seen if 'GClipMonitorHook' in text]


def test_module_without_gradient_is_reported_dead(tmp_path, monkeypatch):
    found = warnings_of(tmp_path, monkeypatch, dict(patience=3), model__uses_head=False)
    assert len(found) == 1, 'once, not at every measured step'
    assert 'iteration 12' in found[0] and 'dead' in found[0] and 'head' in found[0]
    assert 'backbone' not in found[0]


def test_vanishing_gradient_is_reported(tmp_path, monkeypatch):
    found = warnings_of(tmp_path, monkeypatch, dict(vanishing=1e6, patience=2))
    assert len(found) == 1 and 'vanishing' in found[0]
    assert 'backbone.0' in found[0] and 'head' in found[0]


def test_healthy_run_has_no_warning(tmp_path, monkeypatch):
    assert not warnings_of(tmp_path, monkeypatch, dict(patience=1))


def test_histograms_count_every_value():
    values = torch.tensor([0.0, 1e-30, 1e-6, 0.02, 0.02, 1e30, float('inf'), float('nan')])
    histogram = log_histograms({'a': values, 'b': values[:3]})['a']
    assert histogram.counts.sum() == len(values)
    assert histogram.counts[0] == 2 and histogram.counts[-1] == 3, 'outside values in outer bins'
    at = np.searchsorted(histogram.edges, np.log10(0.02)) - 1
    assert histogram.counts[at] == 2
    assert histogram.edges[0] == LOW and histogram.edges[-1] == HIGH
    assert log_histograms({}) == {}


def test_local_backend_gets_images(tmp_path):
    run(tmp_path, dict(histogram_interval=8, depth=1), clip_grad=NORM)
    pictures = sorted(path.name for path in tmp_path.glob('*/vis_data/vis_image/*.png'))
    assert pictures == sorted(
        f'{title}_{step}.png'
        for title in ('unit_grad_norm', 'unit_grad_to_weight')
        for step in (8, 16, 24)
    )
    picture = cv2.imread(str(next(tmp_path.glob('*/vis_data/vis_image/unit_grad_norm_8.png'))))
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 20


def test_image_row_is_dark_at_its_values():
    picture = draw('x', log_histograms({'low': torch.full((9,), 1e-8), 'high': torch.ones(9)}))
    dark = (picture[:, 260:].sum(2) < 300) & (np.ptp(picture[:, 260:], axis=2) > 20)
    rows = [np.flatnonzero(dark[y]) for y in (40, 62)]
    assert len(rows[0]) and len(rows[1])
    assert rows[0].max() < rows[1].min()


def test_tensorboard_and_wandb_get_histograms():
    calls = []

    class WandbVisBackend:
        experiment = types.SimpleNamespace(log=lambda values: calls.append(('wandb', values)))
        _wandb = types.SimpleNamespace(Histogram=lambda np_histogram: np_histogram)

    class TensorboardVisBackend:
        experiment = types.SimpleNamespace(
            add_histogram_raw=lambda name, **values: calls.append((name, values))
        )

    visualizer = types.SimpleNamespace(
        _vis_backends={'a': WandbVisBackend(), 'b': TensorboardVisBackend()}
    )
    publish(visualizer, 'title', log_histograms({'m': torch.tensor([0.1, 0.1, 10.0])}), 7)
    (_, wandb), (name, raw) = calls
    counts, edges = wandb['title.m']
    assert sum(counts) == 3 and len(edges) == len(counts) + 1
    assert name == 'title.m' and raw['num'] == 3 and raw['global_step'] == 7
    assert len(raw['bucket_limits']) == len(raw['bucket_counts'])
    assert raw['sum'] == pytest.approx(-1 - 1 + 1, abs=0.5)


def test_each_wrapper_member_has_its_own_observer():
    model = nn.ModuleDict({'a': nn.Linear(2, 2), 'b': nn.Linear(2, 2)})
    members = {
        name: GClipOptimWrapper(torch.optim.SGD(model[name].parameters(), lr=0.1), clip_grad=NORM)
        for name in ('a', 'b')
    }
    runner = types.SimpleNamespace(optim_wrapper=OptimWrapperDict(**members), hooks=[], model=model)

    class Count(StepObserver):
        seen = 0

        def on_record(self, record):
            self.seen += 1

    observers = {'a': Count(), 'b': Count()}
    detach = observe(runner, observers)
    model['b'](torch.ones(1, 2)).sum().backward()
    members['b'].step()
    assert (observers['a'].seen, observers['b'].seen) == (0, 1)
    detach()
    members['b'].step()
    assert observers['b'].seen == 1


@pytest.mark.parametrize(
    ('key', 'value'), [('interval', 0), ('depth', 0), ('loss_intervals', -1), ('patience', 0)]
)
def test_value_out_of_range_is_refused(key, value):
    with pytest.raises(ClipConfigError, match=f'GClipMonitorHook: {key}'):
        GClipMonitorHook(**{key: value})
