"""A run that was cut off and resumed ends bit-identical to an uninterrupted one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch


def final(work_dir: Path) -> dict:
    return torch.load(work_dir / 'iter_12.pth')


@pytest.fixture
def cut_run(train, tmp_path) -> Path:
    """A run that crashed after 7 of 12 iterations; its last checkpoint is of the fourth."""
    with pytest.raises(RuntimeError, match='crashed on purpose'):
        train('cut', '--cfg-options', 'custom_hooks.0.at=7')
    return tmp_path / 'cut'


@pytest.mark.parametrize('how', ['latest', 'path'])
def test_resume_round_trip(train, cut_run, how):
    assert (cut_run / 'last_checkpoint').read_text().endswith('iter_4.pth')
    straight = final(train('straight'))
    resumed = final(train('cut', '--resume', *([str(cut_run / 'iter_4.pth')] * (how == 'path'))))
    assert resumed['meta']['iter'] == 12
    torch.testing.assert_close(resumed['state_dict'], straight['state_dict'], rtol=0, atol=0)
    for part in ('optimizer', 'param_schedulers'):
        assert_same(resumed[part], straight[part])
    losses = [run['message_hub']['log_scalars']['train/loss'].data for run in (resumed, straight)]
    assert (losses[0][0] == losses[1][0]).all(), 'the loss history continues'


def test_resume_skips_a_truncated_checkpoint(train, cut_run):
    straight = final(train('straight'))
    half = cut_run / 'iter_6.pth'
    half.write_bytes((cut_run / 'iter_4.pth').read_bytes()[:1000])
    (cut_run / 'last_checkpoint').write_text(str(half))
    resumed = final(train('cut', '--resume'))
    torch.testing.assert_close(resumed['state_dict'], straight['state_dict'], rtol=0, atol=0)
    assert len(resumed['message_hub']['log_scalars']['train/loss'].data[0]) == 12


def test_resume_with_only_a_truncated_checkpoint_is_an_error(train, tmp_path):
    (tmp_path / 'new').mkdir()
    half = tmp_path / 'new' / 'iter_4.pth'
    half.write_bytes(b'half')
    (tmp_path / 'new' / 'last_checkpoint').write_text(str(half))
    with pytest.raises(SystemExit, match='no checkpoint of .* can be read'):
        train('new', '--resume')


def test_run_without_resume_starts_over(train, cut_run):
    again = final(train('cut'))
    assert len(again['message_hub']['log_scalars']['train/loss'].data[0]) == 12


def test_resume_in_an_empty_folder_starts_a_run(train):
    assert final(train('new', '--resume'))['meta']['iter'] == 12


def test_resume_from_a_missing_checkpoint_is_an_error(train, tmp_path):
    with pytest.raises(SystemExit, match=r'--resume: checkpoint .*gone\.pth. is not there'):
        train('new', '--resume', str(tmp_path / 'gone.pth'))


def assert_same(left, right):
    assert type(left) is type(right)
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right)
        for pair in zip(left, right, strict=True):
            assert_same(*pair)
    elif isinstance(left, torch.Tensor):
        assert torch.equal(left, right)
    else:
        assert left == right
