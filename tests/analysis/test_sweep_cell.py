"""One cell of a sweep: interrupted, diverged, failed, without clipping."""

from __future__ import annotations

import pytest
from mmengine.config import Config
from mmengine.registry import MODELS

from gclip_mm.analysis.sweep_cell import cell_config, run_cell
from gclip_mm.analysis.sweep_grid import Cell

from .conftest import TOY


def test_cell_interrupted_after_its_last_checkpoint_is_validated(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(TOY))
    base = Config.fromfile(TOY / 'toy_validated.py')
    base.train_cfg.update(max_iters=8, val_interval=8)
    base.default_hooks.checkpoint = dict(type='CheckpointHook', interval=8, by_epoch=False)
    results = []
    for name in 'ab':
        # MMEngine keeps one message hub an experiment.
        base.experiment_name = f'{tmp_path.name}_{name}'
        results.append(run_cell(cell_config(base, Cell(0.02, 'none', 0), tmp_path), 20))
    first, again = results
    assert (first.status, again.status, again.iterations) == ('trained', 'trained', 8)
    assert again.metrics['toy/score'] == pytest.approx(first.metrics['toy/score'])


def test_unclipped_cell_has_no_clip_hook(tmp_path):
    base = Config(dict(
        optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=1)),
        custom_hooks=[dict(type='GClipHook', clip_grad=dict(max_norm=1e-4)), dict(type='EMAHook')],
    ))  # fmt: skip
    for rule in (None, dict(max_norm=3)):
        cfg = cell_config(base, Cell(0.02, 'x', 0, rule), tmp_path)
        assert [hook.type for hook in cfg.custom_hooks] == ['EMAHook']
    assert len(base.custom_hooks) == 2


@pytest.mark.parametrize(('lost', 'status'), [(True, 'diverged'), (False, 'failed')])
def test_error_with_nan_weights_counts_as_diverged(tmp_path, monkeypatch, lost, status):
    """Before any loss was seen that is none: it is the loss that refuses its input."""
    monkeypatch.syspath_prepend(str(TOY))
    base = Config.fromfile(TOY / 'toy_validated.py')
    base.experiment_name = f'{tmp_path.name}_{status}'
    cfg = cell_config(base, Cell(0.02, 'none', 0), tmp_path)
    kind = MODELS.get(base.model.type)

    def refuse(self, *args, **kwargs):
        if lost:
            next(self.parameters()).data.fill_(float('nan'))
        raise RuntimeError('input should be between 0 and 1')

    monkeypatch.setattr(kind, 'train_step', refuse)
    outcome = run_cell(cfg, 20)
    assert outcome.status == status and 'between 0 and 1' in outcome.error
