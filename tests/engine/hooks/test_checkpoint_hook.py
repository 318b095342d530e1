"""At any moment of a run there is a whole checkpoint on the disk."""

from __future__ import annotations

import pytest
from mmengine.fileio import get_file_backend

from gclip_mm.engine.checkpoints.atomic_backend import AtomicLocalBackend
from gclip_mm.engine.checkpoints.resume import ResumeError, check_checkpoint
from tests.engine.toy_task import RULES, run_toy


def test_the_old_checkpoint_goes_after_the_new_one_is_there(tmp_path, monkeypatch):
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
def test_as_many_checkpoints_as_the_stock_hook_keeps(tmp_path, keep):
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


def test_resume_passes_over_a_damaged_checkpoint(tmp_path):
    keep = dict(default_hooks__checkpoint__max_keep_ckpts=2)
    runner = run_toy(tmp_path, RULES['NormClip'], **keep)
    weights = runner.model.state_dict()
    last = tmp_path / 'iter_24.pth'
    last.write_bytes(last.read_bytes()[:1000])
    again = run_toy(tmp_path, RULES['NormClip'], resume=True, **keep).model.state_dict()
    assert all((again[key] == weights[key]).all() for key in weights)
    assert check_checkpoint(last) is None


def test_resume_without_a_whole_checkpoint_does_not_start_over(tmp_path):
    run_toy(tmp_path, RULES['NormClip'])
    last = tmp_path / 'iter_24.pth'
    last.write_bytes(last.read_bytes()[:1000])
    with pytest.raises(ResumeError, match='no checkpoint'):
        run_toy(tmp_path, RULES['NormClip'], resume=True)


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
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
