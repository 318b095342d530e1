"""Images with known faults, a data set of them, and a spikes.jsonl that names them."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from mmengine.config import Config

WIDTH, HEIGHT = 60, 40


#: Boxes of the images, x1, y1, x2, y2; the last box of b.jpg is absurd.
BOXES = {
    'a.jpg': [(5, 5, 25, 30), (30, 10, 50, 20)],
    'b.jpg': [(10, 10, 20, 20), (-3000, 5, 9000, 30)],
    'c.jpg': [(2, 3, 40, 35)],
}


@pytest.fixture(scope='module')
def faulty_images(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data')
    generator = np.random.default_rng(0)
    for name in BOXES:
        pixels = generator.integers(60, 200, (HEIGHT, WIDTH, 3), np.uint8)
        if name == 'c.jpg':
            pixels = 255 * generator.integers(0, 2, (HEIGHT, WIDTH, 3), np.uint8)
        (folder / 'JPEGImages').mkdir(exist_ok=True)
        # VOC data sets look for .jpg; what is in it is told by its first bytes.
        (folder / 'JPEGImages' / name).write_bytes(cv2.imencode('.png', pixels)[1].tobytes())
    return folder


def coco(folder) -> dict:
    content = {
        'images': [
            dict(id=10 + i, file_name=name, width=WIDTH, height=HEIGHT)
            for i, name in enumerate(BOXES)
        ],
        'annotations': [
            dict(id=100 * i + k, image_id=10 + i, category_id=1, iscrowd=0,
                 area=(x2 - x1) * (y2 - y1), bbox=[x1, y1, x2 - x1, y2 - y1])
            for i, boxes in enumerate(BOXES.values())
            for k, (x1, y1, x2, y2) in enumerate(boxes)
        ],
        'categories': [dict(id=1, name='cell')],
    }  # fmt: skip
    (folder / 'coco.json').write_text(json.dumps(content))
    return dict(
        type='CocoDataset',
        data_root=str(folder),
        ann_file='coco.json',
        data_prefix=dict(img='JPEGImages/'),
        metainfo=dict(classes=('cell',)),
    )


def voc(folder) -> dict:
    (folder / 'Annotations').mkdir(exist_ok=True)
    for name, boxes in BOXES.items():
        objects = ''.join(
            '<object><name>cell</name><difficult>0</difficult><bndbox>'
            f'<xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin><xmax>{x2 + 1}</xmax><ymax>{y2 + 1}</ymax>'
            '</bndbox></object>'
            for x1, y1, x2, y2 in boxes
        )
        size = f'<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>'
        stem = name.removesuffix('.jpg')
        (folder / 'Annotations' / f'{stem}.xml').write_text(
            f'<annotation>{size}{objects}</annotation>'
        )
    (folder / 'train.txt').write_text('\n'.join(n.removesuffix('.jpg') for n in BOXES))
    return dict(
        type='XMLDataset',
        data_root=str(folder),
        ann_file='train.txt',
        data_prefix=dict(sub_data_root=''),
        metainfo=dict(classes=('cell',)),
    )


def config(dataset: dict) -> Config:
    return Config(dict(train_dataloader=dict(dataset=dataset), default_scope='mmdet'))


def line(iteration, names, folder, cause='norm', norm=50.0, **more) -> dict:
    entry = dict(
        rank=0,
        images=[dict(img_id=i, img_path=str(folder / 'JPEGImages' / n)) for i, n in names],
        losses=dict(loss=3.0, loss_bbox=2.0),
    )
    return dict(
        iter=iteration, epoch=1, cause=cause, grad_norm=norm, median=2.0, spike_threshold=9.0,
        grad_norm_post=1.0, clip_coef=0.02, clip_threshold=1.0,
        modules=[dict(name='head', grad_norm=norm)], ranks=[entry], **more,
    )  # fmt: skip


@pytest.fixture
def spiked_run(tmp_path, faulty_images):
    a, b, c = (0, 'a.jpg'), (1, 'b.jpg'), (2, 'c.jpg')
    rows = [
        line(7, [a, b], faulty_images),
        line(12, [b, c], faulty_images, 'nonfinite', 'nan'),
        line(30, [c, a], faulty_images, norm=20.0),
        line(30, [b, b], faulty_images, norm=30.0),
    ]
    text = '\n'.join(json.dumps(row) for row in rows)
    (tmp_path / 'spikes.jsonl').write_text(f'{text}\n{{"iter": 31, "ca')
    return tmp_path
