"""Reports of training runs: reading what a run left, and the pictures made from it."""

from __future__ import annotations

from pathlib import Path

import cv2
import pytest
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.runner import save_checkpoint

from gclip_mm.cli import compare, report
from tests.analysis.run_logs import METRICS, log_rows, train_row

ROOT = Path(__file__).resolve().parents[2]


QUICKSTART = ROOT / 'configs/quickstart/faster-rcnn_tiny_shapescenes.py'


@pytest.mark.parametrize('missing', ['scalars', 'config', 'checkpoint'])
def test_missing_file_is_named(tmp_path, capsys, missing):
    if missing != 'scalars':
        log_rows(tmp_path, '20260101_000000', [train_row(10, 2.0)])
    if missing == 'checkpoint':
        (tmp_path / 'config.py').write_text('')
    assert report.main([str(tmp_path)]) == 1
    error = capsys.readouterr().err
    named = dict(scalars='scalars.json', config='--config', checkpoint='--checkpoint')[missing]
    assert error.startswith('error: ') and error.count('\n') == 1 and named in error


def test_missing_work_dir_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit):
        report.main([str(tmp_path / 'none')])
    assert 'none is not a folder' in capsys.readouterr().err


@pytest.fixture(scope='module')
def finished_run(tmp_path_factory) -> Path:
    """A work_dir with everything that training leaves, the weights not trained."""
    work_dir = tmp_path_factory.mktemp('run')
    register_all_modules()
    cfg = Config.fromfile(QUICKSTART)
    params = dict(num_train=1, num_val=3, image_size=(96, 80), seed=0)
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.update(data_root=str(work_dir / 'data'), params=params)
    cfg.dump(work_dir / 'tiny.py')
    weights = MODELS.build(cfg.model).state_dict()
    save_checkpoint(dict(state_dict=weights), str(work_dir / 'iter_2.pth'))
    rows = [
        train_row(k, 2.0 / k, grad_norm=5.0, grad_norm_post=2.0, clip_threshold=2.0) for k in (1, 2)
    ]
    log_rows(work_dir, '20260101_000000', [*rows, METRICS])
    return work_dir


def picture(path: Path):
    image = cv2.imread(str(path))
    assert image is not None and image.std() > 5  # it is a picture, and not an empty one
    return image


def test_report_draws_and_prints_all_paths(finished_run, tmp_path, capsys):
    assert report.main([str(finished_run), '--num-images', '2', '--out', str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert 'mAP (coco/bbox_mAP) 0.510, mAP50 (coco/bbox_mAP_50) 0.830' in shown
    for path in (
        finished_run / '20260101_000000/20260101_000000.log',
        finished_run / 'iter_2.pth',
        tmp_path / 'detections.png',
        tmp_path / 'curves.png',
    ):
        assert path.is_file() and str(path) in shown
    picture(tmp_path / 'detections.png')
    picture(tmp_path / 'curves.png')


def test_compare_draws_both_runs(finished_run, tmp_path, capsys):
    out = tmp_path / 'docs' / 'both.png'
    runs = ['--run', f'plain={finished_run}', '--run', f'clipped={finished_run}']
    assert compare.main([*runs, '--num-images', '1', '--out', str(out)]) == 0
    assert 'plain: mAP 0.51' in capsys.readouterr().out
    picture(out)


@pytest.mark.parametrize('runs', [[], ['--run', 'a=x'], ['--run', 'no_label', '--run', 'b=y']])
def test_compare_rejects_malformed_runs(runs, capsys):
    with pytest.raises(SystemExit):
        compare.main(runs)
    assert '--run' in capsys.readouterr().err
