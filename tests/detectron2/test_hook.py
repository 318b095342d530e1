"""``GClipHook``: the same as ``clip``, as a hook."""

from __future__ import annotations

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.engine import SimpleTrainer
from detectron2.solver import build_optimizer

from gclip_mm.clipping import ClipConfigError, GradClipEngine
from gclip_mm.detectron2 import GClipHook, add_gclip_config, clip
from tests.detectron2.toy import Trainer, batches, make_cfg, make_model, same, weights

STATEFUL = dict(type='AutoClip', percentile=30, window=50)


def with_hook(folder, iterations, data=None):
    cfg = make_cfg(folder, iterations)
    trainer = type('T', (Trainer,), {'data': data})(cfg)
    trainer.register_hooks([GClipHook(STATEFUL)])
    return trainer


def test_hook_gives_the_bits_of_clip(tmp_path):
    hooked = with_hook(tmp_path / 'a', 8)
    hooked.train()

    def build(cfg, model):
        return clip(build_optimizer(cfg, model), STATEFUL, model)

    cls = type('T', (Trainer,), {'build_optimizer': staticmethod(build)})
    plain = cls(make_cfg(tmp_path / 'b', 8))
    plain.train()
    assert same(weights(hooked.model), weights(plain.model))


def test_state_is_resumed(tmp_path):
    whole = with_hook(tmp_path / 'a', 8)
    whole.train()
    first = with_hook(tmp_path / 'b', 4, batches(8)[:4])
    first.train()
    second = with_hook(tmp_path / 'b', 8, batches(8)[4:])
    second.resume_or_load(resume=True)
    assert second.start_iter == 4
    second.train()
    assert same(weights(whole.model), weights(second.model))


def test_hook_in_build_hooks_clips(tmp_path):
    class Hooked(Trainer):
        def build_hooks(self):
            return [GClipHook('Auto'), *super().build_hooks()]

    trainer = Hooked(make_cfg(tmp_path, 2))
    trainer.train()
    assert GradClipEngine.on(trainer.optimizer).steps == 2


@pytest.mark.parametrize(
    ('rule', 'message'), [('type=AGC,clip_facto=1', "'clip_facto'"), (None, 'got None')]
)
def test_invalid_rule_raises_when_the_hook_is_built(rule, message):
    with pytest.raises(ClipConfigError, match=message):
        GClipHook(rule)


def test_empty_key_of_the_config_does_not_clip():
    cfg = get_cfg()
    add_gclip_config(cfg)
    model = make_model()
    trainer = SimpleTrainer(model, batches(2), torch.optim.SGD(model.parameters(), lr=0.1))
    trainer.register_hooks([GClipHook(cfg)])
    trainer.train(0, 2)
    assert GradClipEngine.on(trainer.optimizer) is None


def test_trainer_that_clips_in_its_loop_is_refused():
    """detrex's trainer has its setting as an attribute."""
    model = make_model()
    trainer = SimpleTrainer(model, batches(2), torch.optim.SGD(model.parameters(), lr=0.1))
    trainer.clip_grad_params = dict(max_norm=0.1, norm_type=2)
    trainer.register_hooks([GClipHook('Auto')])
    with pytest.raises(ClipConfigError, match=r'SimpleTrainer clips.*train\.clip_grad\.enabled'):
        trainer.train(0, 2)
    trainer.clip_grad_params = None
    trainer.train(0, 2)


def test_loop_that_never_steps_warns():
    class Loop(SimpleTrainer):
        def run_step(self):
            self.model(next(self._data_loader_iter))['loss_cls'].backward()

    model = make_model()
    trainer = Loop(model, batches(2), torch.optim.SGD(model.parameters(), lr=0.1))
    trainer.register_hooks([GClipHook('Auto')])
    with pytest.warns(UserWarning, match='was never called'):
        trainer.train(0, 2)
