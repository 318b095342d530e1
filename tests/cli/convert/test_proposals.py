"""Proposal files: MMDetection's format, whole or not at all, and resumed."""

from __future__ import annotations

import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmdet.registry import DATASETS
from mmdet.utils import register_all_modules

from gclip_mm.cli.convert import proposals as tool

needs_contrib = pytest.mark.skipif(
    not hasattr(cv2, 'ximgproc'), reason='OpenCV without its contrib modules'
)


@pytest.fixture
def counted(monkeypatch):
    """A search that is quick, and remembers what it was asked for."""
    calls = []

    def search(image, **options):
        calls.append(options)
        return np.array([[1, 2, 3, 4], [0, 0, image.shape[1], 5]], np.float32), np.ones(
            2, np.float32
        )

    monkeypatch.setattr(tool, 'selective_search', search)
    monkeypatch.setattr(tool, 'require_selective_search', lambda: None)
    return calls


@pytest.fixture
def data(tmp_path):
    return dict(
        type='ShapeScenesDataset',
        data_root=str(tmp_path / 'shapes'),
        ann_file='annotations/train.json',
        params=dict(num_train=4, num_val=2, image_size=(64, 64), seed=0),
    )


@pytest.fixture
def config(tmp_path, data):
    lines = []
    for split in ('train', 'val', 'test'):
        part = 'train' if split == 'train' else 'val'
        dataset = dict(data, ann_file=f'annotations/{part}.json')
        dataset['proposal_file'] = f'proposals/{part}.pkl'
        lines.append(f'{split}_dataloader = dict(dataset={dataset!r})')
    path = tmp_path / 'config.py'
    path.write_text('\n'.join(lines))
    return path


def images(tmp_path, count=3, folder='images'):
    paths = []
    for i in range(count):
        path = tmp_path / folder / f'{i}.png'
        path.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(path), np.full((8, 10 + i, 3), 128, np.uint8))
        paths.append(str(path))
    return paths


def test_mmdetection_reads_the_file(counted, config, data, tmp_path, capsys):
    tool.main([str(config), '--workers', '1', '--max-num', '50'])
    assert counted == [dict(mode='fast', max_num=50, max_width=500)] * 6  # selective search
    printed = capsys.readouterr().out
    assert 'train.pkl: 4 images, 2 boxes' in printed and 'val.pkl: 2 images' in printed
    register_all_modules()
    pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadProposals')]
    dataset = DATASETS.build(dict(data, proposal_file='proposals/train.pkl', pipeline=pipeline))
    assert len(dataset) == 4
    np.testing.assert_array_equal(dataset[2]['proposals'], [[1, 2, 3, 4], [0, 0, 64, 5]])


def test_existing_file_is_kept(counted, config, capsys):
    tool.main([str(config), '--workers', '1', '--splits', 'val'])
    tool.main([str(config), '--workers', '1', '--splits', 'val', 'test'])
    assert len(counted) == 2 and 'exists: kept' in capsys.readouterr().out
    tool.main([str(config), '--workers', '1', '--splits', 'val', '--overwrite'])
    assert len(counted) == 4


def test_killed_run_continues(counted, tmp_path, monkeypatch):
    paths, out = images(tmp_path), tmp_path / 'out.pkl'
    search = tool.selective_search

    def dies(image, **options):
        if image.shape[1] == 12:
            raise KeyboardInterrupt
        return search(image, **options)

    monkeypatch.setattr(tool, 'selective_search', dies)
    with pytest.raises(KeyboardInterrupt):
        tool.write_proposals(out, paths, dict(mode='fast'))
    assert not out.exists() and len(counted) == 2
    # Its last record was cut off in the middle.
    partial = tmp_path / 'out.pkl.partial'
    partial.write_bytes(partial.read_bytes()[:-5])
    monkeypatch.setattr(tool, 'selective_search', search)
    tool.write_proposals(out, paths, dict(mode='fast'))
    assert len(counted) == 4  # the second, whose record was lost, and the third
    content = pickle.loads(out.read_bytes())
    assert list(content) == ['images/0.png', 'images/1.png', 'images/2.png']
    assert sorted(p.name for p in tmp_path.iterdir()) == ['images', 'out.pkl']


def test_other_options_start_over(counted, tmp_path):
    paths, out = images(tmp_path), tmp_path / 'out.pkl'
    with (tmp_path / 'out.pkl.partial').open('wb') as stream:
        pickle.dump(dict(mode='quality'), stream)
        pickle.dump(('images/0.png', dict(bboxes=np.zeros((0, 4)), scores=np.zeros(0))), stream)
    assert len(tool.write_proposals(out, paths, dict(mode='fast'))['images/0.png']['bboxes']) == 2
    assert len(counted) == 3


def test_two_images_with_one_name_are_an_error(counted, tmp_path):
    (tmp_path / 'a').mkdir()
    (tmp_path / 'b').mkdir()
    paths = images(tmp_path / 'a', 1) + images(tmp_path / 'b', 1)
    with pytest.raises(tool.MakeProposalsError, match="'images/0.png' names two images"):
        tool.write_proposals(tmp_path / 'out.pkl', paths, {})


def test_unreadable_image_is_an_error(counted, tmp_path):
    path = tmp_path / 'broken.jpg'
    path.write_text('no image')
    with pytest.raises(tool.MakeProposalsError, match='broken.jpg'):
        tool.write_proposals(tmp_path / 'out.pkl', [str(path)], {})


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'], 'has no proposal_file'),
        (['nowhere.py'], 'nowhere.py'),
    ],
)
def test_mistake_is_one_line(counted, arguments, message):
    with pytest.raises(SystemExit, match=message):
        tool.main(arguments)


def test_missing_contrib_is_one_line(config, monkeypatch):
    from gclip_mm.models import selective_search

    monkeypatch.delattr(selective_search.cv2, 'ximgproc', raising=False)
    with pytest.raises(SystemExit, match='opencv-contrib-python-headless'):
        tool.main([str(config)])


@needs_contrib
def test_two_processes_equal_one(config, data):
    tool.main([str(config), '--workers', '2', '--splits', 'train'])
    path = Path(data['data_root']) / 'proposals' / 'train.pkl'
    several = pickle.loads(path.read_bytes())
    tool.main([str(config), '--workers', '1', '--splits', 'train', '--overwrite'])
    single = pickle.loads(path.read_bytes())
    assert list(several) == list(single)
    for key, proposals in several.items():
        np.testing.assert_array_equal(proposals['bboxes'], single[key]['bboxes'])


def test_segmentation_alone_needs_no_contrib(config, data, monkeypatch):
    from gclip_mm.models import selective_search

    pytest.importorskip('skimage')
    monkeypatch.delattr(selective_search.cv2, 'ximgproc', raising=False)
    tool.main([str(config), '--method', 'felzenszwalb', '--workers', '1', '--splits', 'train'])
    path = Path(data['data_root']) / 'proposals' / 'train.pkl'
    proposals = pickle.loads(path.read_bytes())
    image = cv2.imread(str(Path(data['data_root']) / 'train' / '000002.jpg'))
    expected, _ = tool.felzenszwalb_boxes(image)
    np.testing.assert_array_equal(proposals['train/000002.jpg']['bboxes'], expected)
