"""A spoiled image is found by name, with its losses and the affected modules."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.logging import MessageHub
from mmengine.optim import OptimWrapperDict
from mmengine.registry import HOOKS, MODELS, OPTIM_WRAPPER_CONSTRUCTORS, OPTIMIZERS

from gclip_mm.clipping import ClipConfigError, NonFiniteGradientError
from gclip_mm.clipping.gradients.names import ParamInfo
from gclip_mm.engine import GClipMonitorHook, GClipOptimWrapper, GClipSpikeHook
from gclip_mm.engine.hooks import spike_hook
from gclip_mm.engine.telemetry.batch_names import batch_images
from gclip_mm.engine.telemetry.spike_detector import Verdict
from gclip_mm.engine.telemetry.spike_record import (
    BatchRecord,
    StepRecord,
    rank_entry,
    spike_line,
    spike_summary,
)
from tests.engine.toy_task import RandomNet, run_toy

BAD = 'images/013.jpg'
TWO_IMAGES = [{'img_id': 1, 'img_path': 'a'}, {'img_id': 2, 'img_path': 'b'}]
NORM = dict(type='NormClip', max_norm=0.5)
SETTINGS = dict(min_history=5, min_ratio=5.0)
#: Entry points to clipping, each with its changes of the config.
DOORS = {
    'wrapper': dict(clip_grad=NORM),
    'agc': dict(clip_grad=dict(type='AGC', clip_factor=0.01)),
    'routes': dict(
        clip_grad=dict(**NORM, exclude=['backbone.0.bias'], rules=[dict(match='^head')])
    ),
    'fused': dict(clip_grad=NORM, optim_wrapper__optimizer__fused=True),
    'hook': dict(
        optim_wrapper__type='OptimWrapper', hooks=[dict(type='GClipHook', clip_grad=NORM)]
    ),
    'stock': dict(optim_wrapper__type='OptimWrapper', clip_grad=dict(max_norm=0.5)),
    'unclipped': dict(optim_wrapper__optimizer__lr=1e-6),
}


def no_constant(word: str):
    raise AssertionError(f'{word} is not JSON')


def run(work_dir: Path, spoiled: float = 1e3, hook: dict | None = None, hooks=(), **changes):
    run_toy(
        work_dir,
        train_dataloader__dataset__spoiled={BAD: spoiled},
        train_cfg__max_iters=changes.pop('train_cfg__max_iters', 30),
        custom_hooks=[*hooks, dict(type='GClipSpikeHook', **SETTINGS, **(hook or {}))],
        **changes,
    )
    return lines(work_dir)


def lines(work_dir: Path) -> list[dict]:
    path = work_dir / 'spikes.jsonl'
    rows = path.read_text().splitlines() if path.exists() else []
    return [json.loads(row, parse_constant=no_constant) for row in rows]


def images(line: dict) -> list[str]:
    return [image['img_path'] for entry in line['ranks'] for image in entry['images']]


@pytest.mark.parametrize('door', DOORS)
def test_every_entry_point_finds_the_bad_image(tmp_path, door):
    found = run(tmp_path, **DOORS[door])
    # 30 batches of 4 out of 20 images: each image occurs about six times, but the first
    # occurrences may precede the history.
    assert len(found) >= 3
    assert sum(line['cause'] == 'norm' for line in found) >= 2
    for line in found:
        assert line['cause'] in ('norm', 'loss')
        assert BAD in images(line), 'no other image is a spike'
        losses = line['ranks'][0]['losses']
        value = line['grad_norm'] if line['cause'] == 'norm' else losses[line['loss_term']]
        assert value > line['spike_threshold'] >= 4.999 * line['median']
        entry = line['ranks'][0]
        assert {'img_path': BAD, 'img_id': 13} in entry['images'] and len(entry['images']) == 4
        assert entry['losses']['loss_square'] > 1e3
        assert set(entry['losses']) == {'loss', 'loss_square', 'loss_abs'}
        # The toy has two modules that own parameters.
        assert {m['name'] for m in line['modules']} == {'backbone.0', 'head'}
        norms = [m['grad_norm'] for m in line['modules']]
        assert norms == sorted(norms, reverse=True)
        assert math.hypot(*norms) == pytest.approx(line['grad_norm'], rel=1e-5)
        clips = door != 'unclipped'
        assert (line['clip_coef'] < 0.9) == clips
        assert line['grad_norm_post'] == pytest.approx(
            line['grad_norm'] * line['clip_coef'], rel=1e-4
        )


def test_iteration_numbers_match_the_log(tmp_path):
    found = run(tmp_path, **DOORS['wrapper'], default_hooks__logger__interval=1)
    scalars = [
        json.loads(row)
        for row in next(tmp_path.glob('*/vis_data/scalars.json')).read_text().splitlines()
    ]
    logged = {row['step']: row['loss'] for row in scalars if 'loss' in row}
    # The log's loss is a mean over a window, which has one iteration only at the first line.
    norms = {row['step']: row['grad_norm'] for row in scalars if 'grad_norm' in row}
    assert logged and all(line['iter'] in norms for line in found)
    assert found[0]['epoch'] == 1


def test_interval_does_not_change_the_lines(tmp_path):
    at_once = run(tmp_path / 'a', **DOORS['wrapper'])
    late = run(tmp_path / 'b', hook=dict(interval=7), **DOORS['wrapper'])
    assert at_once == late


def test_loss_outlier_is_found_without_gradient_outlier(tmp_path):
    """An L1 loss has gradients of one size for any target."""
    found = run(tmp_path, **DOORS['wrapper'], model__only_abs=True)
    assert found
    for line in found:
        assert line['cause'] == 'loss' and BAD in images(line)
        loss = line['ranks'][0]['losses'][line['loss_term']]
        assert loss > line['spike_threshold'] > line['median']
        assert line['grad_norm'] < 3 * found[0]['grad_norm']


def test_outlier_of_a_small_loss_term_is_found(tmp_path, monkeypatch):
    """The sum hides a small term that grows twentyfold; numbers that are no loss are ignored."""
    forward = RandomNet.forward

    def with_small_term(self, inputs, data_samples, mode='tensor'):
        out = forward(self, inputs, data_samples, mode)
        is_bad = any(sample.img_path == BAD for sample in data_samples)
        small = torch.tensor(0.4 if is_bad else 0.02)
        return {**out, 'loss_small': small, 'acc': torch.tensor(1e6 if is_bad else 1.0)}

    monkeypatch.setattr(RandomNet, 'forward', with_small_term)
    found = run(tmp_path, spoiled=1.0, **DOORS['unclipped'])
    assert found and {line['loss_term'] for line in found} == {'loss_small'}
    assert all(BAD in images(line) for line in found)


def test_nonfinite_loss_with_finite_gradient_is_found(tmp_path, monkeypatch):
    forward = RandomNet.forward

    def broken(self, inputs, data_samples, mode='tensor'):
        out = forward(self, inputs, data_samples, mode)
        if any(sample.img_path == BAD for sample in data_samples):
            out['loss_box'] = torch.tensor(math.nan)
        return out

    monkeypatch.setattr(RandomNet, 'forward', broken)
    found = run(tmp_path, spoiled=1.0, **DOORS['wrapper'])
    assert found and {line['loss_term'] for line in found} == {'loss_box'}, 'not the sum'
    assert all(BAD in images(line) and line['cause'] == 'loss' for line in found)
    assert all(line['ranks'][0]['losses']['loss_box'] == 'nan' for line in found)


def test_nonfinite_step_is_found(tmp_path):
    found = run(tmp_path, spoiled=math.inf, **DOORS['wrapper'])
    assert found
    for line in found:
        assert line['cause'] == 'nonfinite' and BAD in images(line)
        assert line['grad_norm'] in ('nan', 'inf') and line['clip_threshold'] is None
        assert {m['grad_norm'] for m in line['modules']} <= {'nan', 'inf'}
        assert line['modules_not_finite'] == line['modules_in_all'] == 2
        assert line['ranks'][0]['losses']['loss'] in ('nan', 'inf')


@pytest.mark.parametrize(
    ('norms', 'loss', 'expected'),
    [
        ([math.nan, math.inf, math.nan], math.nan, 'norm nan, in all 3 modules; 7'),
        (
            [math.nan, math.inf, math.nan],
            1.0,
            'norm nan, in all 3 modules; every loss is finite; 7',
        ),
        ([1.0, math.inf, 2.0], 1.0, 'norm nan, not finite in 1 of 3 modules: b; 7'),
        ([1.0, 5.0, 2.0], 1.0, 'norm nan, most in b; 7'),
        ([math.nan], 1.0, 'norm nan, not finite in 1 of 1 modules: a; 7'),
    ],
)
def test_summary_names_modules_only_if_others_are_finite(norms, loss, expected):
    params = [torch.nn.Parameter(torch.ones(1)) for _ in norms]
    infos = [ParamInfo(p, f'{n}.weight', None, '') for p, n in zip(params, 'abc', strict=False)]
    batch = BatchRecord([dict(img_id=7)], None)
    batch.losses = dict(loss=loss)
    step = StepRecord(1, 1, [batch], torch.zeros(6), infos, torch.tensor(norms))
    numbers = np.array([math.nan, math.nan, math.nan, math.nan, 0.0, 1.0])
    line = spike_line(step, numbers, Verdict('nonfinite', None, None), [rank_entry(step)])
    assert spike_summary(line) == f'iteration 1: nonfinite, gradient {expected}'


def test_step_that_ends_the_run_is_written(tmp_path):
    """nonfinite='raise' leaves the training loop; the kept steps are written at exit."""
    hooks = []
    init = GClipSpikeHook.__init__

    def remember(self, *args, **kwargs):
        init(self, *args, **kwargs)
        hooks.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GClipSpikeHook, '__init__', remember)
        with pytest.raises(NonFiniteGradientError):
            run(tmp_path, math.nan, clip_grad=dict(**NORM, nonfinite='raise'))
    assert not lines(tmp_path)
    hooks[0].flush_alone()
    (line,) = lines(tmp_path)
    assert line['cause'] == 'nonfinite' and BAD in images(line) and line['modules']
    hooks[0].flush_alone()
    assert len(lines(tmp_path)) == 1


def test_batches_are_saved_on_request(tmp_path):
    found = run(tmp_path, hook=dict(keep_batch=True, max_batches=2), **DOORS['wrapper'])
    kept = [tmp_path / 'spikes' / f'iter_{line["iter"]}_rank0.pth' for line in found[:2]]
    assert set((tmp_path / 'spikes').iterdir()) == set(kept)
    (batch,) = torch.load(kept[0], weights_only=False)
    names = [sample.img_path for sample in batch['data_samples']]
    assert names == images(found[0])
    assert len(batch['inputs']) == 4


def test_batches_are_not_saved_by_default(tmp_path):
    assert run(tmp_path, **DOORS['wrapper'])
    assert not (tmp_path / 'spikes').exists()


def test_all_accumulated_batches_are_named(tmp_path):
    found = run(
        tmp_path,
        **DOORS['wrapper'],
        optim_wrapper__accumulative_counts=2,
        train_cfg__max_iters=60,
    )
    assert found
    for line in found:
        assert line['iter'] % 2 == 0 and len(images(line)) == 8 and BAD in images(line)


def test_max_lines_is_kept(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(spike_hook, 'print_log', lambda message, **_: seen.append(message))
    assert len(run(tmp_path, hook=dict(max_lines=2), **DOORS['wrapper'])) == 2
    assert sum('max_lines' in text for text in seen) == 1
    assert BAD in seen[0] or 'more' in seen[0]


def test_coefficient_below_min_coef_is_found(tmp_path):
    found = run(tmp_path, spoiled=1.0, hook=dict(min_coef=0.99), **DOORS['wrapper'])
    assert len(found) > 10 and all(line['cause'] == 'clip_coef' for line in found)


def test_resume_restores_the_window_from_the_log(tmp_path):
    straight = run(tmp_path / 'a', **DOORS['wrapper'])
    run(tmp_path / 'b', **DOORS['wrapper'], train_cfg__max_iters=15)
    resumed = run(tmp_path / 'b', **DOORS['wrapper'], resume=True, hooks=[])
    after = [ln for ln in straight if ln['iter'] > 15]
    # Without random state in the checkpoint the numbers differ, but the same steps are spikes.
    assert [ln['iter'] for ln in resumed if ln['iter'] > 15] == [ln['iter'] for ln in after]
    first = next(ln for ln in resumed if ln['iter'] > 15)
    assert first['median'] == pytest.approx(after[0]['median'], rel=0.5)


def test_batch_without_image_names_is_warned_of(monkeypatch):
    seen = []
    monkeypatch.setattr(spike_hook, 'print_log', lambda message, **_: seen.append(message))
    hook = GClipSpikeHook()

    class Runner:
        iter = epoch = 0

    for _ in range(2):
        hook.before_train_iter(Runner(), 0, {'inputs': [torch.zeros(3)]})
    assert len(seen) == 1 and 'meta_keys' in seen[0]


@pytest.mark.parametrize(
    ('batch', 'expected'),
    [
        # The form in which default_collate returns dicts.
        ({'inputs': 1, 'img_path': ['a', 'b'], 'img_id': torch.tensor([1, 2])}, TWO_IMAGES),
        ({'img_id': np.array([1, 2]), 'img_path': ('a', 'b')}, TWO_IMAGES),
        ({'img_id': torch.tensor([1, 2])}, [{'img_id': 1}, {'img_id': 2}]),
        ({'img_id': torch.tensor(3), 'img_path': Path('a')}, [{'img_id': 3, 'img_path': 'a'}]),
        ({'img_id': torch.tensor([[1, 2], [3, 4]])}, [{'img_id': '[1, 2]'}, {'img_id': '[3, 4]'}]),
        # Malformed, but no reason to end a training run.
        ({'img_id': [1, 2], 'img_path': ['a']}, [{'img_id': 1, 'img_path': 'a'}, {'img_id': 2}]),
        ({'img_id': [], 'img_path': []}, []),
        ([{'img_path': 'a', 'img_id': 4}], [{'img_id': 4, 'img_path': 'a'}]),
        ({'x': {'img_path': ['a', 'b'], 'img_id': [1, 2]}}, TWO_IMAGES),
        (None, []),
    ],
)
def test_image_names_are_found_in_nested_batches(batch, expected):
    assert batch_images(batch) == expected
    json.dumps(batch_images(batch))


@MODELS.register_module()
class SeveralSteps(RandomNet):
    """Two optimizer steps in an iteration, as with a critic; the loss of one of them is NaN."""

    def __init__(self, which: int) -> None:
        super().__init__()
        self.which = which
        self.count = 0

    def train_step(self, data, optim_wrapper):
        data = self.data_preprocessor(data, True)
        for part in range(2):
            with optim_wrapper.optim_context(self):
                loss = sum(self(**data, mode='loss').values())
            if self.count == 11 and part == self.which:
                loss = loss * math.nan
            optim_wrapper.update_params(loss)
        self.count += 1
        return dict(loss=loss.detach())


@pytest.mark.parametrize('which', [0, 1])
def test_every_step_of_an_iteration_is_checked(tmp_path, which):
    found = run(
        tmp_path, spoiled=1.0, model=dict(type='SeveralSteps', which=which), **DOORS['wrapper']
    )
    assert [(line['iter'], line['cause']) for line in found if line['cause'] == 'nonfinite'] == [
        (12, 'nonfinite')
    ]
    assert len(images(found[0])) == 4


def test_steps_of_one_iteration_share_its_batch(tmp_path):
    found = run(
        tmp_path,
        spoiled=math.inf,
        hook=dict(keep_batch=True, max_batches=2),
        model=dict(type='SeveralSteps', which=3),
        **DOORS['wrapper'],
    )
    iterations = list(dict.fromkeys(line['iter'] for line in found))
    assert len(found) == 2 * len(iterations)
    kept = {f'iter_{iteration}_rank0.pth' for iteration in iterations[:2]}
    assert {path.name for path in (tmp_path / 'spikes').iterdir()} == kept


class Nested(torch.optim.SGD):
    def step(self, closure=None):
        return super().step(closure)


OPTIMIZERS.register_module(module=Nested)


def test_nested_step_counts_once_under_a_stock_wrapper(tmp_path):
    torch.optim.SGD([torch.zeros(1)], lr=0.1)
    found = run(tmp_path, **DOORS['stock'], optim_wrapper__optimizer__type='Nested')
    iterations = [line['iter'] for line in found]
    assert iterations and len(iterations) == len(set(iterations))


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class HeadAndBackbone:
    """One member each; the model decides which one steps."""

    def __init__(self, **_: Any) -> None:
        pass

    def __call__(self, model):
        return OptimWrapperDict(**{
            name: GClipOptimWrapper(
                torch.optim.SGD(getattr(model, name).parameters(), lr=0.01), clip_grad=NORM
            )
            for name in ('backbone', 'head')
        })  # fmt: skip


@MODELS.register_module()
class HeadFirst(RandomNet):
    """The backbone steps only in the last iteration."""

    def train_step(self, data, optim_wrapper):
        data = self.data_preprocessor(data, True)
        loss = sum(self(**data, mode='loss').values())
        is_last = MessageHub.get_current_instance().get_info('iter') == 39
        names = ['head', 'backbone'] if is_last else ['head']
        for name in names:
            optim_wrapper[name].backward(loss, retain_graph=True)
        for name in names:
            optim_wrapper[name].step()
            optim_wrapper[name].zero_grad()
        return dict(loss=loss.detach())


@HOOKS.register_module()
class HowMuchIsKept(Hook):
    """Counts the batches and losses that are kept for a step."""

    priority = 'LOWEST'

    def after_train_iter(self, runner, *_, **__):
        spikes, monitor = (
            next(hook for hook in runner.hooks if isinstance(hook, kind))
            for kind in (GClipSpikeHook, GClipMonitorHook)
        )
        kept = [len(member._batches) for member in spikes._members.values()]
        self.most = max(getattr(self, 'most', 0), *kept)
        self.losses = max(len(probe._losses) for probe in monitor._probes.values())


def test_member_that_never_steps_keeps_few_batches(tmp_path):
    runner = run_toy(
        tmp_path,
        model=dict(type='HeadFirst'),
        optim_wrapper=dict(_delete_=True, constructor='HeadAndBackbone'),
        param_scheduler=None,
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=40),
        custom_hooks=[
            dict(type='GClipSpikeHook', keep_batch=True),
            dict(type='GClipMonitorHook', interval=5),
            dict(type='HowMuchIsKept'),
        ],
    )
    watch = next(hook for hook in runner.hooks if isinstance(hook, HowMuchIsKept))
    assert 1 < watch.most <= 16 and watch.losses <= 16


@pytest.mark.parametrize(
    ('key', 'value'), [('interval', 0), ('max_lines', 0), ('max_batches', 0), ('z_threshold', -1)]
)
def test_value_out_of_range_is_refused(key, value):
    with pytest.raises(ClipConfigError, match=f'GClipSpikeHook: {key}'):
        GClipSpikeHook(**{key: value})


TWO = """
import sys
sys.path[:0] = [{folder!r}, {root!r}]
import torch
from toy_task import toy_config
from mmengine.runner import Runner
from gclip_mm.engine.dist import set_up_cpu_distributed
torch.set_num_threads(1)
cfg = toy_config({out!r}, dict(type='NormClip', max_norm=0.5), launcher='pytorch',
                 train_dataloader__dataset__spoiled={{{bad!r}: 1e3}},
                 custom_hooks=[dict(type='GClipSpikeHook', min_history=5, min_ratio=5.0)])
set_up_cpu_distributed(cfg)
Runner.from_cfg(cfg).train()
"""


def test_line_names_the_images_of_every_rank(tmp_path):
    script, folder = tmp_path / 'two.py', Path(__file__).parents[1]
    script.write_text(
        TWO.format(folder=str(folder), root=str(folder.parents[1]), out=str(tmp_path), bad=BAD)
    )
    command = [sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node=2']
    command += ['--rdzv_backend=c10d', '--rdzv_endpoint=localhost:0', str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    found = lines(tmp_path)
    assert found
    ranks_of_bad = set()
    for line in found:
        assert [entry['rank'] for entry in line['ranks']] == [0, 1]
        assert len(images(line)) == 8 and BAD in images(line)
        bad = [BAD in [i['img_path'] for i in entry['images']] for entry in line['ranks']]
        ranks_of_bad.add(bad.index(True))
        losses = [entry['losses']['loss'] for entry in line['ranks']]
        assert losses[bad.index(True)] > 10 * losses[bad.index(False)]
    assert ranks_of_bad == {0, 1}, 'both ranks had the image, and both were asked'
