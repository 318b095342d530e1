"""Reports of training runs: reading what a run left, and the pictures made from it."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path

import cv2
import pytest

pytest.importorskip('mmdet')

from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.runner import save_checkpoint

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = ROOT / 'configs/quickstart/faster-rcnn_tiny_shapescenes.py'


@pytest.fixture(scope='module')
def tools_on_path():
    # The scripts import their neighbours as `python tools/analysis/...` lets them.
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / 'tools/analysis'))
        yield


@pytest.fixture(scope='module')
def report(tools_on_path):
    return importlib.import_module('report_run')


@pytest.fixture(scope='module')
def compare(tools_on_path):
    return importlib.import_module('compare_runs')


@pytest.fixture(scope='module')
def run_files(tools_on_path):
    return importlib.import_module('run_files')


def log_rows(work_dir: Path, timestamp: str, rows: list[dict], tail: str = '') -> None:
    folder = work_dir / timestamp / 'vis_data'
    folder.mkdir(parents=True)
    (folder / 'scalars.json').write_text(''.join(json.dumps(r) + '\n' for r in rows) + tail)
    (work_dir / timestamp / f'{timestamp}.log').write_text('log')


def train_row(step: int, loss: float, **more: float) -> dict:
    return {'lr': 0.1, 'loss': loss, 'step': step, 'iter': step, **more}


METRICS = {'coco/bbox_mAP': 0.51, 'coco/bbox_mAP_50': 0.83, 'coco/bbox_mAP_75': 0.5, 'step': 30}


def test_a_resumed_run_is_one_run(run_files, tmp_path):
    log_rows(tmp_path, '20260101_000000', [train_row(s, 1.0) for s in (10, 20, 30)])
    # Resumed from a checkpoint of step 10: the rows after it are another run's past.
    log_rows(tmp_path, '20260102_000000', [*(train_row(s, 0.5) for s in (20, 30, 40)), METRICS])
    scalars = run_files.read_scalars(tmp_path)
    assert scalars.series('loss') == ([10, 20, 30, 40], [1.0, 0.5, 0.5, 0.5])
    assert scalars.last_metrics()['coco/bbox_mAP'] == 0.51
    assert run_files.main_metric(scalars) == 0.51
    assert run_files.find_log(tmp_path).name == '20260102_000000.log'


def test_nan_and_a_torn_last_line_are_read(run_files, tmp_path):
    rows = [train_row(10, 2.0, grad_norm=3.0), train_row(20, math.nan), train_row(30, math.inf)]
    log_rows(tmp_path, '20260101_000000', rows, tail='{"lr": 0.1, "lo')
    scalars = run_files.read_scalars(tmp_path)
    assert scalars.lost_from() == 20
    assert scalars.series('grad_norm') == ([10], [3.0])
    assert scalars.last_metrics() == {} and run_files.main_metric(scalars) is None


def test_the_checkpoint_of_a_moved_work_dir_is_found(run_files, tmp_path):
    (tmp_path / 'iter_20.pth').write_bytes(b'')
    (tmp_path / 'last_checkpoint').write_text('/elsewhere/iter_20.pth')
    assert run_files.find_checkpoint(tmp_path) == tmp_path / 'iter_20.pth'


@pytest.mark.parametrize('missing', ['scalars', 'config', 'checkpoint'])
def test_what_is_missing_is_named(report, tmp_path, capsys, missing):
    if missing != 'scalars':
        log_rows(tmp_path, '20260101_000000', [train_row(10, 2.0)])
    if missing == 'checkpoint':
        (tmp_path / 'config.py').write_text('')
    assert report.main([str(tmp_path)]) == 1
    error = capsys.readouterr().err
    named = dict(scalars='scalars.json', config='--config', checkpoint='--checkpoint')[missing]
    assert error.startswith('error: ') and error.count('\n') == 1 and named in error


def test_a_work_dir_that_is_not_there_is_named(report, tmp_path, capsys):
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


def test_report_draws_and_says_where_everything_is(report, finished_run, tmp_path, capsys):
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


def test_compare_draws_both_runs(compare, finished_run, tmp_path, capsys):
    out = tmp_path / 'docs' / 'both.png'
    runs = ['--run', f'plain={finished_run}', '--run', f'clipped={finished_run}']
    assert compare.main([*runs, '--num-images', '1', '--out', str(out)]) == 0
    assert 'plain: mAP 0.51' in capsys.readouterr().out
    picture(out)


@pytest.mark.parametrize('runs', [[], ['--run', 'a=x'], ['--run', 'no_label', '--run', 'b=y']])
def test_compare_says_how_runs_are_named(compare, runs, capsys):
    with pytest.raises(SystemExit):
        compare.main(runs)
    assert '--run' in capsys.readouterr().err
