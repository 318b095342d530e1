"""BCCDDataset on a copy of its folder layout with two synthetic photos."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip('mmdet')

from mmdet.registry import DATASETS
from mmdet.utils import register_all_modules

import gclip_mm.datasets  # noqa: F401  registers the class

OBJECT = (
    '<object><name>{}</name><difficult>0</difficult><bndbox><xmin>{}</xmin><ymin>{}</ymin>'
    '<xmax>{}</xmax><ymax>{}</ymax></bndbox></object>'
)
PHOTOS = {
    'BloodImage_00000': [('WBC', 11, 11, 61, 51), ('RBC', 21, 31, 41, 61)],
    # The real data also have a box without width.
    'BloodImage_00001': [('Platelets', 5, 6, 15, 16), ('RBC', 33, 20, 33, 20)],
}


@pytest.fixture(scope='module', autouse=True)
def _registered():
    register_all_modules()


@pytest.fixture
def bccd(tmp_path) -> Path:
    root = tmp_path / 'BCCD'
    for folder in ('JPEGImages', 'Annotations', 'ImageSets/Main'):
        (root / folder).mkdir(parents=True)
    for name, objects in PHOTOS.items():
        cv2.imwrite(str(root / 'JPEGImages' / f'{name}.jpg'), np.zeros((96, 128, 3), np.uint8))
        size = '<size><width>128</width><height>96</height><depth>3</depth></size>'
        body = ''.join(OBJECT.format(*values) for values in objects)
        xml = f'<annotation>{size}{body}</annotation>'
        (root / 'Annotations' / f'{name}.xml').write_text(xml)
    (root / 'ImageSets/Main/train.txt').write_text('\n'.join(PHOTOS) + '\n')
    return root


def build(root, **kwargs):
    return DATASETS.build(dict(type='BCCDDataset', data_root=str(root), pipeline=[], **kwargs))


def test_load_reads_voc_layout(bccd):
    dataset = build(bccd)
    assert dataset.metainfo['classes'] == ('RBC', 'WBC', 'Platelets')
    assert len(dataset) == 2
    info = dataset.get_data_info(0)
    assert Path(info['img_path']) == bccd / 'JPEGImages/BloodImage_00000.jpg'
    # VOC counts pixels from 1.
    assert [(i['bbox_label'], i['bbox']) for i in info['instances']] == [
        (1, [10, 10, 60, 50]),
        (0, [20, 30, 40, 60]),
    ]


def test_training_ignores_box_without_width(bccd):
    dataset = build(bccd, filter_cfg=dict(filter_empty_gt=True, bbox_min_size=2))
    flags = [i['ignore_flag'] for i in dataset.get_data_info(1)['instances']]
    assert flags == [0, 1]


@pytest.mark.parametrize('lost', ['', 'ImageSets/Main/train.txt', 'JPEGImages', 'Annotations'])
def test_missing_file_raises_one_line_error_with_path(bccd, lost):
    (bccd / lost).rename(bccd.parent / 'elsewhere')
    with pytest.raises(FileNotFoundError) as error:
        build(bccd)
    message = str(error.value)
    assert str(bccd / (lost or 'ImageSets/Main/train.txt')) in message
    assert 'https://github.com/Shenggan/BCCD_Dataset' in message
    assert 'data_root' in message and '\n' not in message
