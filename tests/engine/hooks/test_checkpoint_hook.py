"""A complete checkpoint exists at any moment of a run."""

from __future__ import annotations

import pytest
from mmengine.fileio import get_file_backend

from gclip_mm.engine.checkpoints.atomic_backend import AtomicLocalBackend
from gclip_mm.engine.checkpoints.resume import ResumeError, check_checkpoint
from tests.engine.toy_task import RULES, run_toy


def test_oldest_checkpoint_is_deleted_after_the_newest_is_written(tmp_path, monkeypatch):
    seen = []
    put = AtomicLocalBackend.put

    def watched(self, obj, filepath):
        seen.append([path.name for path in tmp_path.glob('*.pth') if not check_checkpoint(path)])
        put(self, obj, filepath)

    monkeypatch.setattr(AtomicLocalBackend, 'put', watched)
    run_toy(tmp_path, RULES['NormClip'])
    assert seen == [[], ['iter_5.pth'], ['iter_10.pth'], ['iter_15.pth'], ['iter_20.pth']]
    assert [path.name for path in tmp_path.glob('*.pth')] == ['iter_24.pth']
    assert (tmp_path / 'last_checkpoint').read_text() == str(tmp_path / 'iter_24.pth')


@pytest.mark.parametrize('keep', [-1, 2])
def test_same_number_of_checkpoints_as_the_stock_hook(tmp_path, keep):
    names = []
    for kind in ('GClipCheckpointHook', 'CheckpointHook'):
        run_toy(
            tmp_path / kind,
            RULES['NormClip'],
            default_hooks__checkpoint__type=kind,
            default_hooks__checkpoint__max_keep_ckpts=keep,
        )
        names.append(sorted(path.name for path in (tmp_path / kind).glob('*.pth')))
    assert names[0] == names[1]


def test_resume_skips_a_damaged_checkpoint(tmp_path):
    keep = dict(default_hooks__checkpoint__max_keep_ckpts=2)
    runner = run_toy(tmp_path, RULES['NormClip'], **keep)
    weights = runner.model.state_dict()
    last = tmp_path / 'iter_24.pth'
    last.write_bytes(last.read_bytes()[:1000])
    again = run_toy(tmp_path, RULES['NormClip'], resume=True, **keep).model.state_dict()
    assert all((again[key] == weights[key]).all() for key in weights)
    assert check_checkpoint(last) is None


def test_resume_without_a_complete_checkpoint_raises(tmp_path):
    run_toy(tmp_path, RULES['NormClip'])
    last = tmp_path / 'iter_24.pth'
    last.write_bytes(last.read_bytes()[:1000])
    with pytest.raises(ResumeError, match='no checkpoint'):
        run_toy(tmp_path, RULES['NormClip'], resume=True)


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    backend = get_file_backend(backend_args={'backend': 'gclip_local'})
    path = tmp_path / 'new' / 'file.pth'
    backend.put(b'old', path)

    def full(*_):
        raise OSError('no space left on device')

    monkeypatch.setattr('os.fsync', full)
    with pytest.raises(OSError, match='no space'):
        backend.put(b'new', path)
    assert path.read_bytes() == b'old'
    monkeypatch.undo()
    backend.put_text('newer', path)
    assert path.read_bytes() == b'newer'
    assert [p.name for p in path.parent.iterdir()] == ['file.pth']
