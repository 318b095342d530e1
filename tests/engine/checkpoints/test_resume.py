"""The choice of the checkpoint to resume from when some are damaged."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch

from gclip_mm.engine.checkpoints import resume
from gclip_mm.engine.checkpoints.resume import ResumeError, check_checkpoint, find_resumable


@pytest.fixture
def warnings(monkeypatch) -> list[str]:
    seen: list[str] = []
    monkeypatch.setattr(resume, 'print_log', lambda message, **_: seen.append(message))
    return seen


def save(path: Path, iteration: int = 1, optimizer: bool = True) -> Path:
    checkpoint = {'meta': {'iter': iteration}, 'state_dict': {'w': torch.randn(100)}}
    if optimizer:
        checkpoint['optimizer'] = {}
    torch.save(checkpoint, path)
    # File times may have a coarse resolution.
    when = time.time() + iteration
    os.utime(path, (when, when))
    return path


def point(work_dir: Path, to: Path | str) -> None:
    (work_dir / 'last_checkpoint').write_text(str(to))


def truncate(path: Path, share: float = 0.5) -> None:
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def test_named_checkpoint_is_chosen_if_complete(tmp_path, warnings):
    save(tmp_path / 'iter_2.pth', 2)
    # A file of an older, longer run in the same folder.
    save(tmp_path / 'iter_9.pth', 9)
    point(tmp_path, tmp_path / 'iter_2.pth')
    assert find_resumable(tmp_path) == str(tmp_path / 'iter_2.pth')
    assert not warnings


@pytest.mark.parametrize('share', [0, 0.001, 0.5, 0.999])
def test_truncated_checkpoint_is_skipped_for_the_newest_complete_one(tmp_path, warnings, share):
    for i in (1, 2, 3):
        save(tmp_path / f'iter_{i}.pth', i)
    truncate(tmp_path / 'iter_3.pth', share)
    point(tmp_path, tmp_path / 'iter_3.pth')
    assert find_resumable(tmp_path) == str(tmp_path / 'iter_2.pth')
    assert 'iter_3.pth' in warnings[0] and 'Skipped' in warnings[0]
    assert 'iter_2.pth' in warnings[1]
    assert (tmp_path / 'iter_3.pth').exists(), 'nothing is deleted'


def test_flipped_byte_is_found(tmp_path, warnings):
    save(tmp_path / 'iter_1.pth', 1)
    path = save(tmp_path / 'iter_2.pth', 2)
    data = bytearray(path.read_bytes())
    weights = torch.load(path)['state_dict']['w'].numpy().tobytes()
    data[data.index(weights) + 200] ^= 1
    path.write_bytes(data)
    point(tmp_path, path)
    assert 'damaged' in check_checkpoint(path)
    assert find_resumable(tmp_path) == str(tmp_path / 'iter_1.pth')


@pytest.mark.parametrize('text', ['', 'gone.pth'])
def test_invalid_last_checkpoint_falls_back_to_the_newest(tmp_path, warnings, text):
    save(tmp_path / 'iter_1.pth', 1)
    point(tmp_path, text and tmp_path / text)
    assert find_resumable(tmp_path) == str(tmp_path / 'iter_1.pth')
    assert warnings


def test_checkpoint_without_optimizer_is_no_fallback(tmp_path, warnings):
    save(tmp_path / 'iter_1.pth', 1)
    save(tmp_path / 'best_loss_iter_2.pth', 2, optimizer=False)
    truncate(save(tmp_path / 'iter_3.pth', 3))
    point(tmp_path, tmp_path / 'iter_3.pth')
    assert find_resumable(tmp_path) == str(tmp_path / 'iter_1.pth')


def test_folder_of_the_named_checkpoint_is_searched(tmp_path, warnings):
    elsewhere = tmp_path / 'elsewhere'
    work_dir = tmp_path / 'work'
    for folder in (elsewhere, work_dir):
        folder.mkdir()
    save(elsewhere / 'iter_1.pth', 1)
    truncate(save(elsewhere / 'iter_2.pth', 2))
    point(work_dir, elsewhere / 'iter_2.pth')
    assert find_resumable(work_dir) == str(elsewhere / 'iter_1.pth')


def test_run_without_checkpoints_gives_none(tmp_path, warnings):
    assert find_resumable(tmp_path) is None
    # Killed within the first write: no checkpoint exists yet.
    truncate(save(tmp_path / 'iter_1.pth'))
    assert find_resumable(tmp_path) is None
    assert 'iter_1.pth' in warnings[0]


def test_no_complete_checkpoint_raises(tmp_path, warnings):
    truncate(save(tmp_path / 'iter_1.pth'))
    point(tmp_path, tmp_path / 'iter_1.pth')
    with pytest.raises(ResumeError, match=r'iter_1\.pth: .*load_from'):
        find_resumable(tmp_path)


def test_remote_checkpoint_is_left_to_its_backend(tmp_path):
    point(tmp_path, 's3://bucket/iter_3.pth')
    assert find_resumable(tmp_path) == 's3://bucket/iter_3.pth'


class Unknown:
    """A class that the safe loader refuses."""


def test_unknown_class_is_not_damage(tmp_path):
    path = tmp_path / 'iter_1.pth'
    torch.save({'meta': Unknown(), 'optimizer': {}}, path)
    assert check_checkpoint(path) is None
