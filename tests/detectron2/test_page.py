"""The code of docs/detectron2.md runs, and its commands exist."""

from __future__ import annotations

import re

import torch
from detectron2.config import instantiate

from gclip_mm.clipping import GradClipEngine
from gclip_mm.detectron2 import clip
from tests.detectron2.toy import batches, make_cfg, make_model
from tests.examples.pages import DOCS, run_page

PAGE = (DOCS / 'detectron2.md').read_text()


def test_code_of_the_page_clips(tmp_path):
    names = run_page('detectron2.md')

    class Trainer(names['Trainer']):
        build_model = staticmethod(lambda cfg: make_model())
        build_train_loader = staticmethod(lambda cfg: batches(2))

    trainer = Trainer(make_cfg(tmp_path, 2))
    trainer.train()
    assert GradClipEngine.on(trainer.optimizer).config.raw == dict(type='AGC', clip_factor=0.01)
    assert GradClipEngine.on(trainer.optimizer).stats()['clip_fraction'] > 0

    for rule, expected in (
        (names['cfg'], dict(type='AGC', clip_factor=0.01)),
        (names['rule'], dict(type='AGC', clip_factor=0.01, max_consecutive_skips=10)),
    ):
        model = make_model()
        optimizer = clip(torch.optim.SGD(model.parameters(), lr=0.1), rule, model)
        assert GradClipEngine.on(optimizer).config.raw == expected

    names['optimizer'].params.model = make_model()
    engine = GradClipEngine.on(instantiate(names['optimizer']))
    assert engine.config.raw == dict(type='Auto')

    trainer = type('T', (Trainer,), {'build_optimizer': staticmethod(sgd)})(make_cfg(tmp_path, 2))
    trainer.register_hooks([names['clipping']])
    trainer.train()
    assert GradClipEngine.on(trainer.optimizer).config.raw == dict(type='AutoClip')


def sgd(cfg, model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


def test_numbers_of_the_page_are_those_that_are_logged():
    from gclip_mm.clipping import LOG_KEYS

    assert set(re.findall(r'`gclip/(\w+)`', PAGE)) == set(LOG_KEYS)
