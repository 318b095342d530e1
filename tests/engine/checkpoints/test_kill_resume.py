"""A run that is killed at any moment and resumed reaches bit-identical weights."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gclip_mm.clipping import CLIPPERS
from gclip_mm.compat import LOADS_WEIGHTS_ONLY
from tests.engine.toy_task import RULES

rule_or_skip = [
    pytest.param(
        rule,
        id=name,
        marks=pytest.mark.skipif(name not in CLIPPERS, reason=f'{name} is not registered'),
    )
    for name, rule in RULES.items()
]
STOCK = {'default_hooks__checkpoint__type': 'CheckpointHook'}


@pytest.fixture(scope='module')
def train():
    """Train in a separate process; returns the exit status."""
    driver = subprocess.Popen(
        [sys.executable, str(Path(__file__).parent / 'kill_driver.py')],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def run(work_dir: Path, clip_grad: dict, kill=None, find: bool = False, **changes) -> int:
        job = dict(
            work_dir=str(work_dir), clip_grad=clip_grad, kill=kill, find=find, changes=changes
        )
        driver.stdin.write(json.dumps(job) + '\n')
        driver.stdin.flush()
        return int(driver.stdout.readline())

    yield run
    driver.stdin.close()
    assert driver.wait() == 0


def final(work_dir: Path, name: str = 'iter_24.pth') -> dict:
    return torch.load(work_dir / name, weights_only=LOADS_WEIGHTS_ONLY)


def assert_same_run(left: dict, right: dict, why: str) -> None:
    for part in ('state_dict', 'optimizer', 'gclip_rng'):
        assert_same(left[part], right[part], f'{why}: {part}')
    for key in ('loss', 'grad_norm', 'clip_coef'):
        histories = [
            run['message_hub']['log_scalars'][f'train/{key}'].data[0] for run in (left, right)
        ]
        assert histories[0].tolist() == histories[1].tolist(), f'{why}: history of {key}'


def assert_same(left, right, where: str) -> None:
    if isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for key in left:
            assert_same(left[key], right[key], f'{where}.{key}')
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), where
        for i, pair in enumerate(zip(left, right, strict=True)):
            assert_same(*pair, f'{where}.{i}')
    elif isinstance(left, torch.Tensor):
        assert torch.equal(left, right), where
    else:
        assert left == right, where


@pytest.mark.parametrize('rule', rule_or_skip)
def test_run_killed_at_random_and_while_writing_resumes(train, tmp_path, rule):
    assert train(tmp_path / 'straight', rule) == 0
    straight = final(tmp_path / 'straight')
    coefs = straight['message_hub']['log_scalars']['train/clip_coef'].data[0]
    assert (coefs < 1).any(), 'the rule has to clip, otherwise its state does not matter'

    # The moment is random in every run of this test; the result must not depend on it.
    where, at = random.choice(['forward', 'step', 'after_step']), random.randrange(5, 24)
    killed = tmp_path / 'killed'
    assert train(killed, rule, kill=[where, at]) == -9
    assert train(killed, rule, resume=True) == 0
    assert_same_run(final(killed), straight, f'killed in {where} of iteration {at}')

    # From the second write on: before the first there is no checkpoint to resume.
    write = random.randrange(1, 5)
    torn = tmp_path / 'torn'
    assert train(torn, rule, kill=['write', write]) == -9
    assert list(torn.glob('*.partial')), 'the kill must leave a partial file'
    assert train(torn, rule, resume=True) == 0
    assert_same_run(final(torn), straight, f'killed in write {write}')


def test_repeatedly_killed_run_resumes(train, tmp_path):
    rule = RULES['NormClip']
    assert train(tmp_path / 'straight', rule) == 0
    killed = tmp_path / 'killed'
    for at in (3, 7, 11, 16, 21):
        assert train(killed, rule, kill=['step', at], resume=True) == -9
    assert train(killed, rule, resume=True) == 0
    assert_same_run(final(killed), final(tmp_path / 'straight'), 'killed five times')


def test_truncated_checkpoint_of_the_stock_hook_is_skipped(train, tmp_path):
    """The one before it is found, unless it was deleted first."""
    rule, keep = RULES['AGC'], {'default_hooks__checkpoint__max_keep_ckpts': 2}
    assert train(tmp_path / 'straight', rule, **STOCK, **keep) == 0
    torn = tmp_path / 'torn'
    assert train(torn, rule, kill=['write', 2], **STOCK, **keep) == -9
    # As if the pointer reached the disk before the checkpoint.
    (torn / 'last_checkpoint').write_text(str(torn / 'iter_15.pth'))
    with pytest.raises((RuntimeError, OSError)):
        torch.load(torn / 'iter_15.pth', weights_only=LOADS_WEIGHTS_ONLY)
    assert train(torn, rule, resume=True, **STOCK, **keep) == 1, 'the stock runner checks nothing'
    assert train(torn, rule, find=True, **STOCK, **keep) == 0
    assert_same_run(final(torn), final(tmp_path / 'straight'), 'torn')


EPOCHS = {
    'train_cfg': dict(type='EpochBasedTrainLoop', max_epochs=4, val_interval=1, _delete_=True),
    'train_dataloader__sampler__type': 'DefaultSampler',
    'default_hooks__checkpoint': dict(
        type='GClipCheckpointHook', by_epoch=True, save_best='loss', rule='less', interval=1
    ),
}


def test_epoch_run_with_validation_resumes(train, tmp_path):
    """Validation draws a seed for its loader; checkpoints are saved before and during it."""
    rule = RULES['NormClip']
    changes = {**EPOCHS, **VALIDATION}
    assert train(tmp_path / 'straight', rule, **changes) == 0
    killed = tmp_path / 'killed'
    assert train(killed, rule, kill=['step', 13], **changes) == -9
    assert train(killed, rule, resume=True, **changes) == 0
    last = 'epoch_4.pth'
    assert_same_run(final(killed, last), final(tmp_path / 'straight', last), 'epochs')


VALIDATION = {
    'val_dataloader': dict(
        batch_size=4,
        num_workers=0,
        dataset=dict(type='RandomData'),
        sampler=dict(type='DefaultSampler', shuffle=False),
        collate_fn=dict(type='pseudo_collate'),
    ),
    'val_cfg': dict(type='ValLoop'),
    'val_evaluator': dict(type='MeanError'),
}


def test_iteration_run_with_validation_resumes(train, tmp_path):
    rule = RULES['NormClip']
    changes = {**VALIDATION, 'train_cfg__val_interval': 5}
    assert train(tmp_path / 'straight', rule, **changes) == 0
    killed = tmp_path / 'killed'
    assert train(killed, rule, kill=['forward', 17], **changes) == -9
    assert train(killed, rule, resume=True, **changes) == 0
    assert_same_run(final(killed), final(tmp_path / 'straight'), 'validated')


def test_worker_processes_draw_the_same_augmentations(train, tmp_path):
    rule = RULES['NormClip']
    changes = {'train_dataloader__num_workers': 1}
    assert train(tmp_path / 'straight', rule, **changes) == 0
    killed = tmp_path / 'killed'
    assert train(killed, rule, kill=['forward', 12], **changes) == -9
    assert train(killed, rule, resume=True, **changes) == 0
    assert_same_run(final(killed), final(tmp_path / 'straight'), 'workers')


def test_run_without_a_seed_resumes_with_its_drawn_seed(train, tmp_path):
    """Compares two runs killed at different moments, as the seed is random."""
    rule, changes = RULES['NormClip'], {'randomness': dict(seed=None)}
    first, second = tmp_path / 'first', tmp_path / 'second'
    assert train(first, rule, kill=['step', 8], **changes) == -9
    second.mkdir()
    for name in ('iter_5.pth',):
        (second / name).write_bytes((first / name).read_bytes())
    (second / 'last_checkpoint').write_text(str(second / 'iter_5.pth'))
    assert train(first, rule, resume=True, **changes) == 0
    assert train(second, rule, kill=['step', 13], resume=True, **changes) == -9
    assert train(second, rule, resume=True, **changes) == 0
    assert_same_run(final(first), final(second), 'without a seed')
