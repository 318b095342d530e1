"""docs/lightning.md, run with the real package (``make test-loops``)."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import gclip_mm
from tests.examples.pages import run_page

pl = pytest.importorskip('lightning.pytorch', reason='make test-loops')

RULE = dict(type='AutoClip', percentile=30, window=50)
DATA = torch.randn(32, 6, generator=torch.Generator().manual_seed(1))


class Module(pl.LightningModule):
    def __init__(self, bad=()):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
        self.bad = bad

    def training_step(self, batch, index):
        loss = self.backbone(batch).square().mean()
        return loss * float('nan') if index in self.bad else loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


@pytest.fixture(scope='module')
def callback():
    return run_page('lightning.md')['GradientClipping']


def train(callbacks, tmp_path, module=None, ckpt_path=None, **options):
    module = module or Module()
    trainer = pl.Trainer(
        accelerator='cpu',
        max_steps=options.pop('max_steps', 8),
        callbacks=callbacks,
        default_root_dir=tmp_path,
        log_every_n_steps=2,
        logger=options.pop('logger', False),
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(module, DataLoader(DATA, batch_size=4), ckpt_path=ckpt_path)
    return module, trainer


def by_hand(rule, accumulate):
    module = Module()
    optimizer = module.configure_optimizers()
    gclip_mm.attach(optimizer, rule, model=module)
    for i, batch in enumerate(DataLoader(DATA, batch_size=4)):
        (module.training_step(batch, i) / accumulate).backward()
        if (i + 1) % accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()
    return module


def equal(a, b):
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize('accumulate', [1, 2])
def test_callback_gives_the_bits_of_a_plain_loop(callback, tmp_path, accumulate):
    rule = dict(type='NormClip', max_norm=0.05)
    module, _ = train(
        [callback(rule)], tmp_path, accumulate_grad_batches=accumulate, max_steps=8 // accumulate
    )
    assert equal(module, by_hand(rule, accumulate))
    free, _ = train([], tmp_path, max_steps=8 // accumulate, accumulate_grad_batches=accumulate)
    assert not equal(module, free)


def test_state_is_resumed_from_a_checkpoint(callback, tmp_path):
    _, trainer = train([callback(RULE)], tmp_path, max_steps=4, enable_checkpointing=False)
    trainer.save_checkpoint(tmp_path / 'half.ckpt')
    second = callback(RULE)
    train([second], tmp_path, ckpt_path=tmp_path / 'half.ckpt')
    assert second.saved['steps'] == 4 and second.clip.state_dict()['steps'] == 8


def test_nonfinite_step_is_left_out(callback, tmp_path):
    module = Module(bad=(2,))
    before = []

    class Look(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, index):
            before.append({k: v.clone() for k, v in pl_module.state_dict().items()})

    train([callback(RULE), Look()], tmp_path, module, max_steps=3)
    assert all(torch.equal(before[1][k], before[2][k]) for k in before[1])
    assert not all(torch.equal(before[0][k], before[1][k]) for k in before[0])


def test_numbers_are_logged(callback, tmp_path):
    from lightning.pytorch.loggers import CSVLogger

    _, trainer = train([callback(RULE)], tmp_path, logger=CSVLogger(tmp_path))
    assert trainer.logged_metrics.keys() >= set(gclip_mm.clipping.LOG_KEYS)
    assert trainer.logged_metrics['grad_norm'] > 0


def test_trainer_that_clips_is_refused(callback, tmp_path):
    with pytest.raises(gclip_mm.ClipConfigError, match='remove gradient_clip_val=0.5'):
        train([callback(RULE)], tmp_path, gradient_clip_val=0.5)
