"""Files of ShapeScenes: reproducible, written atomically, safe under concurrency."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

import gclip_mm.datasets.shape_scenes as shape_scenes
from gclip_mm.datasets.shape_scenes import ShapeScenesParams, generate, generator
from gclip_mm.datasets.shape_scenes.__main__ import main
from gclip_mm.datasets.shape_scenes.relations import (
    ANNOTATED_SHARE,
    LONG_TAIL_ORDER,
    annotated_shares,
)
from gclip_mm.datasets.shape_scenes.sampling import draw_sample

TINY = ShapeScenesParams(num_train=4, num_val=2, image_size=(96, 80), seed=5)

# Runs the generator without importing the rest of the package, which would take seconds. It also
# checks that NumPy and OpenCV suffice.
BARE = """
import sys, types
package = {package!r}
for name, path in (('gclip_mm', package), ('gclip_mm.datasets', package + '/datasets')):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [path]
from gclip_mm.datasets.shape_scenes import ShapeScenesParams, generate, generator
assert 'torch' not in sys.modules and 'mmengine' not in sys.modules
out, journal, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
write = generator._write
def noted(*args):
    with open(journal, 'a') as file:
        file.write('drew\\n')
    write(*args)
generator._write = noted
params = ShapeScenesParams(num_train=count, num_val=2, image_size=(96, 80), seed=5)
generate(out, params, progress=False)
"""


def bare_process(out: Path, journal: Path, count: int) -> subprocess.Popen:
    package = str(Path(shape_scenes.__file__).parents[2])
    code = BARE.format(package=package)
    return subprocess.Popen([sys.executable, '-c', code, str(out), str(journal), str(count)])


def checksums(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob('*'))
        if path.is_file()
    }


def test_equal_parameters_give_byte_identical_files(tmp_path):
    first = checksums(generate(tmp_path / 'a', TINY, progress=False))
    second = checksums(generate(tmp_path / 'b', TINY, progress=False))
    assert first == second
    assert set(first) == {
        'shape_scenes.json',
        'annotations/train.json',
        'annotations/val.json',
        *(f'train/{k:06d}.jpg' for k in range(4)),
        *(f'val/{k:06d}.jpg' for k in range(2)),
    }


def test_other_seed_gives_other_pictures(tmp_path):
    other = ShapeScenesParams(num_train=4, num_val=2, image_size=(96, 80), seed=6)
    first = checksums(generate(tmp_path / 'a', TINY, progress=False))
    second = checksums(generate(tmp_path / 'b', other, progress=False))
    assert not set(first.values()) & set(second.values())


def test_picture_depends_on_its_index_only():
    again = [draw_sample(1, 'val', 3, (96, 80)) for _ in range(2)]
    assert (again[0].image == again[1].image).all()
    assert again[0].objects == again[1].objects and again[0].relations == again[1].relations
    assert (draw_sample(1, 'train', 3, (96, 80)).image != again[0].image).any()


def test_larger_data_set_starts_with_smaller_one(tmp_path):
    larger = ShapeScenesParams(num_train=6, num_val=2, image_size=(96, 80), seed=5)
    a = generate(tmp_path / 'a', TINY, progress=False)
    b = generate(tmp_path / 'b', larger, progress=False)
    for name in ('train/000003.jpg', 'val/000001.jpg', 'annotations/val.json'):
        if name.endswith('.jpg'):
            assert (a / name).read_bytes() == (b / name).read_bytes()
    few, more = (json.loads((r / 'annotations/train.json').read_text()) for r in (a, b))
    assert more['annotations'][: len(few['annotations'])] == few['annotations']


def test_existing_data_set_is_reused_unchanged(tmp_path, monkeypatch):
    out = generate(tmp_path / 'a', TINY, progress=False)
    before = {path: path.stat().st_mtime_ns for path in out.rglob('*')}
    monkeypatch.setattr(generator, '_write', lambda *_: pytest.fail('drew again'))
    assert generate(out, TINY, progress=False) == out
    assert {path: path.stat().st_mtime_ns for path in out.rglob('*')} == before


def test_reuse_does_not_need_write_permission(tmp_path, monkeypatch):
    out = generate(tmp_path / 'a', TINY, progress=False)

    def refuse(*_):
        raise PermissionError('read-only')

    monkeypatch.setattr(generator, 'FileLock', refuse)
    assert generate(out, TINY, progress=False) == out


@pytest.mark.parametrize(
    'changed, named',
    [
        (dict(seed=6), 'seed=5'),
        (dict(num_train=5), 'num_train=4'),
        (dict(num_val=1), 'num_val=2'),
        (dict(long_tail=10.0), r'long_tail=None \(requested: 10\.0\)'),
    ],
)
def test_other_parameters_raise_without_overwrite(tmp_path, changed, named):
    out = generate(tmp_path / 'a', TINY, progress=False)
    before = checksums(out)
    wanted = ShapeScenesParams(**{**TINY.__dict__, **changed})
    with pytest.raises(FileExistsError, match=named) as error:
        generate(out, wanted, progress=False)
    assert '--overwrite' in str(error.value)
    assert checksums(out) == before
    generate(out, wanted, overwrite=True, progress=False)
    assert generator._mismatch(out, wanted) is None
    assert sorted(p.name for p in tmp_path.iterdir()) == ['.a.lock', 'a']


def test_damaged_data_set_raises_without_overwrite(tmp_path):
    out = generate(tmp_path / 'a', TINY, progress=False)
    before = checksums(out)
    (out / 'train/000001.jpg').unlink()
    with pytest.raises(FileExistsError, match='train/ has 3 of 4 pictures'):
        generate(out, TINY, progress=False)
    generate(out, TINY, overwrite=True, progress=False)
    assert checksums(out) == before
    with (out / 'annotations/val.json').open('a') as file:
        file.write(' ')
    with pytest.raises(FileExistsError, match=r'annotations/val\.json'):
        generate(out, TINY, progress=False)
    (out / 'shape_scenes.json').write_text('{"recipe": ')
    with pytest.raises(FileExistsError, match=r'damaged shape_scenes\.json'):
        generate(out, TINY, progress=False)


def test_foreign_folder_is_never_changed(tmp_path):
    out = tmp_path / 'mine'
    out.mkdir()
    (out / 'thesis.txt').write_text('years of work')
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match='left unchanged'):
            generate(out, TINY, overwrite=overwrite, progress=False)
    assert (out / 'thesis.txt').read_text() == 'years of work'
    assert [p.name for p in out.iterdir()] == ['thesis.txt']


def test_empty_folder_is_filled(tmp_path):
    (tmp_path / 'a').mkdir()
    assert (generate(tmp_path / 'a', TINY, progress=False) / 'shape_scenes.json').is_file()


def test_killed_run_leaves_no_reusable_data_set(tmp_path):
    out, journal = tmp_path / 'a', tmp_path / 'journal'
    process = bare_process(out, journal, 5000)
    deadline = time.monotonic() + 60
    while len(list((tmp_path / '.a.partial').glob('train/*.jpg'))) < 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not out.exists() and (tmp_path / '.a.partial').is_dir()
    generate(out, TINY, progress=False)
    assert checksums(out) == checksums(generate(tmp_path / 'b', TINY, progress=False))
    assert not (tmp_path / '.a.partial').exists()


def test_concurrent_processes_draw_once(tmp_path):
    out, journal = tmp_path / 'a', tmp_path / 'journal'
    processes = [bare_process(out, journal, 4) for _ in range(4)]
    assert [process.wait(timeout=120) for process in processes] == [0] * 4
    assert journal.read_text() == 'drew\n'
    assert checksums(out) == checksums(generate(tmp_path / 'b', TINY, progress=False))


@pytest.mark.parametrize(
    'bad, named',
    [
        (dict(num_train=0), 'num_train'),
        (dict(num_val=-1), 'num_val'),
        (dict(num_train=2.5), 'num_train'),
        (dict(seed=-1), 'seed'),
        (dict(image_size=(96,)), 'image_size'),
        (dict(image_size=(8, 8)), 'image_size'),
        (dict(image_size=(96, 99999)), 'image_size'),
        (dict(long_tail=0.5), 'long_tail'),
        (dict(long_tail=float('nan')), 'long_tail'),
    ],
)
def test_parameter_out_of_range_raises_with_its_name(bad, named):
    with pytest.raises(ValueError, match=f'^{named} must be'):
        ShapeScenesParams(**bad)


def test_long_tail_changes_relations_only(tmp_path):
    plain = generate(tmp_path / 'a', TINY, progress=False)
    tail = replace(TINY, long_tail=20.0)
    out = generate(tmp_path / 'b', tail, progress=False)
    before, after = checksums(plain), checksums(out)
    assert before.keys() == after.keys()
    pictures = [name for name in before if name.endswith('.jpg')]
    assert len(pictures) == 6 and all(before[name] == after[name] for name in pictures)
    a, b = (json.loads((root / 'annotations/train.json').read_text()) for root in (plain, out))
    assert a['annotations'] == b['annotations'] and a['images'] == b['images']
    assert 'long_tail' not in a['info'] and b['info']['long_tail'] == 20.0
    assert generate(out, tail, progress=False) == out
    with pytest.raises(FileExistsError, match=r'long_tail=20\.0 \(requested: None\)'):
        generate(out, TINY, progress=False)


def test_long_tail_shares_decrease_geometrically():
    shares = annotated_shares(512.0)
    ratios = [shares[name] / ANNOTATED_SHARE[name] for name in LONG_TAIL_ORDER]
    assert ratios == pytest.approx([2.0**-i for i in range(10)])
    assert set(LONG_TAIL_ORDER) == set(ANNOTATED_SHARE) and annotated_shares() is ANNOTATED_SHARE


def test_command_line_draws_and_prints_counts(tmp_path, capsys):
    args = ['--out', str(tmp_path / 'a'), '--seed', '5', '--train', '4', '--val', '2']
    args += ['--size', '96', '80']
    assert main(args) == 0
    shown = capsys.readouterr()
    assert 'train.json: 4 images' in shown.out and 'Drawing ShapeScenes train' in shown.err
    assert checksums(tmp_path / 'a') == checksums(generate(tmp_path / 'b', TINY, progress=False))
    assert main(args) == 0
    assert 'Drawing' not in capsys.readouterr().err


def test_command_line_prints_error_for_bad_option(tmp_path, capsys):
    assert main(['--out', str(tmp_path), '--train', '0']) == 1
    assert capsys.readouterr().err == 'error: num_train must be an integer of at least 1, got 0\n'
    assert not list(tmp_path.iterdir())


def test_command_line_prints_help(capsys):
    with pytest.raises(SystemExit) as stop:
        main(['--help'])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for flag in ('--out', '--seed', '--train', '--val', '--size', '--overwrite'):
        assert flag in shown
