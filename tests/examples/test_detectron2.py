"""The code of docs/detectron2.md runs on a stand-in with Detectron2's contract."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import distributed as dist

from tests.examples import detectron2_stand_in as stand_in

PAGE = Path(__file__).parents[2] / 'docs' / 'detectron2.md'
AGC = re.search(r'clip_grad = (dict\(.*\))', PAGE.read_text()).group(1)


@pytest.fixture
def page(monkeypatch):
    """Run the Python code of the page, optionally with another rule; return its names."""
    engine = types.ModuleType('detectron2.engine')
    engine.DefaultTrainer, engine.HookBase = stand_in.DefaultTrainer, stand_in.HookBase
    monkeypatch.setitem(sys.modules, 'detectron2', types.ModuleType('detectron2'))
    monkeypatch.setitem(sys.modules, 'detectron2.engine', engine)

    def run(rule: str = AGC) -> types.SimpleNamespace:
        names: dict = {}
        text = PAGE.read_text()
        assert AGC in text
        for block in re.findall(r'```python\n(.*?)```', text, flags=re.DOTALL):
            exec(compile(block.replace(AGC, rule), str(PAGE), 'exec'), names)
        return types.SimpleNamespace(**names)

    return run


def config(tmp_path, iters=6, amp=False, distributed=False):
    return types.SimpleNamespace(
        OUTPUT_DIR=str(tmp_path), MAX_ITER=iters, AMP=amp, DISTRIBUTED=distributed
    )


def weights(trainer):
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


@pytest.mark.parametrize('amp', [False, True])
def test_step_is_clipped_except_for_the_excluded_classifier(page, tmp_path, amp):
    trainer = page().Trainer(config(tmp_path, iters=1, amp=amp))
    before = weights(trainer)
    trainer.train()
    # SGD without momentum: the step is the learning rate times the clipped gradient.
    for name, after in weights(trainer).items():
        step = (after - before[name]).reshape(len(after), -1).norm(dim=1)
        size = before[name].reshape(len(after), -1).norm(dim=1)
        if name.endswith('bias'):
            step, size = step.norm(), size.norm()
        limit = 0.1 * 0.01 * size.clamp(min=1e-3)
        if 'cls_score' in name:
            assert (step > limit).all()
        else:
            torch.testing.assert_close(step, limit, rtol=1e-3, atol=1e-7)


def test_ddp_run_equals_a_plain_run(page, tmp_path):
    dist.init_process_group('gloo', f'file://{tmp_path}/rendezvous', rank=0, world_size=1)
    try:
        alone = page().Trainer(config(tmp_path))
        alone.train()
        wrapped = page().Trainer(config(tmp_path, distributed=True))
        wrapped.train()
    finally:
        dist.destroy_process_group()
    pairs = zip(weights(alone).values(), weights(wrapped).values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_resumed_run_restores_the_state_of_the_rule(page, tmp_path):
    rule = "dict(type='AutoClip', percentile=30, window=50)"
    whole = page(rule).Trainer(config(tmp_path, iters=8))
    whole.train()

    first = page(rule).Trainer(config(tmp_path, iters=4))
    first.train()
    first.checkpointer.save()
    second = page(rule).Trainer(config(tmp_path, iters=8))
    second.resume_or_load(resume=True)
    assert second.start_iter == 4
    second.train()
    for a, b in zip(weights(whole).values(), weights(second).values(), strict=True):
        assert torch.equal(a, b)

    # Without the saved history, the weights differ.
    forgetful = page(rule).Trainer(config(tmp_path, iters=8))
    del forgetful.checkpointer.checkpointables['gclip']
    forgetful.resume_or_load(resume=True)
    forgetful.train()
    assert not torch.equal(weights(whole)['backbone.weight'], weights(forgetful)['backbone.weight'])


def test_checkpoint_without_clipping_state_loads(page, tmp_path):
    old = page().Trainer(config(tmp_path, iters=2))
    del old.checkpointer.checkpointables['gclip']
    old.train()
    old.checkpointer.save()
    new = page().Trainer(config(tmp_path))
    new.resume_or_load(resume=True)
    new.train()
    assert new.iter == 5


def test_hook_writes_stats_to_the_storage(page, tmp_path):
    names = page()
    trainer = names.Trainer(config(tmp_path, iters=40))
    trainer.register_hooks([names.ClipStats()])
    trainer.train()
    assert {key: len(values) for key, values in trainer.storage.scalars.items()} == dict.fromkeys(
        trainer.clip.stats(), 2
    )
    assert (
        0 < trainer.storage.scalars['grad_norm_post'][0] < trainer.storage.scalars['grad_norm'][0]
    )


def test_misspelt_key_raises_and_is_named(page, tmp_path):
    with pytest.raises(ValueError, match="'clip_facto'"):
        page("dict(type='AGC', clip_facto=0.01)").Trainer(config(tmp_path))
