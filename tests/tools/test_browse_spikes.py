"""A bad annotation and a bad image are found, drawn and named, in COCO JSON and in VOC XML."""

from __future__ import annotations

import json

import cv2
import matplotlib
import numpy as np
import pytest
from mmengine.config import Config

from gclip_mm.analysis.annotations import AnnotationIndex, box_faults, pixel_fault
from gclip_mm.analysis.spikes import SpikesError, rank_images, read_spikes

from .conftest import ROOT, load_tool

WIDTH, HEIGHT = 60, 40
#: Boxes of the images, x1, y1, x2, y2; the last box of b.jpg is absurd.
BOXES = {
    'a.jpg': [(5, 5, 25, 30), (30, 10, 50, 20)],
    'b.jpg': [(10, 10, 20, 20), (-3000, 5, 9000, 30)],
    'c.jpg': [(2, 3, 40, 35)],
}


@pytest.fixture(scope='module')
def tool():
    return load_tool(ROOT / 'tools' / 'analysis' / 'browse_spikes.py')


@pytest.fixture(scope='module')
def images(tmp_path_factory):
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


@pytest.mark.parametrize('kind', [coco, voc])
@pytest.mark.parametrize('wrapped', [False, True])
def test_boxes_as_the_data_set_has_them(images, kind, wrapped):
    dataset = kind(images)
    if wrapped:
        inner = dict(type='ConcatDataset', datasets=[dataset])
        dataset = dict(type='RepeatDataset', times=3, dataset=inner)
    index = AnnotationIndex(config(dataset))
    assert len(index) == 3
    for name, boxes in BOXES.items():
        found = index.find(str(images / 'JPEGImages' / name))
        np.testing.assert_allclose(found.boxes, np.array(boxes, float))
        assert found.labels == ['cell'] * len(boxes) and not found.ignored.any()
    assert index.find('elsewhere.png') is None
    first = 10 if kind is coco else 'a'
    assert index.find(None, first).path.endswith('a.jpg')


def test_a_config_without_training_data():
    with pytest.raises(ValueError, match='train_dataloader'):
        AnnotationIndex(Config(dict()))


def test_faults_of_boxes():
    boxes = np.array(
        [
            [0, 0, 60, 40],
            [-1, -1, 61, 41],
            [5, 5, 5, 20],
            [5, 9, 20, 8],
            [-2, 5, 20, 20],
            [5, 5, 20, 1e20],
            [5, 5, np.inf, 20],
        ]
    )
    faults = box_faults(boxes, HEIGHT, WIDTH)
    assert faults[:2] == [None, None], 'a corner may be counted from 0 or 1'
    assert faults[2] == 'empty, 0 x 15' and faults[3].startswith('empty')
    assert faults[4].startswith('outside') and '1e+20' in faults[5] and faults[6] == 'not finite'


def test_faults_of_pixels():
    image = np.random.default_rng(0).integers(20, 230, (20, 20, 3), np.uint8)
    assert pixel_fault(image) is None
    assert 'one colour' in pixel_fault(np.full_like(image, 7))
    image[:15] = 255
    assert '75%' in pixel_fault(image)


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
def work_dir(tmp_path, images):
    a, b, c = (0, 'a.jpg'), (1, 'b.jpg'), (2, 'c.jpg')
    rows = [
        line(7, [a, b], images),
        line(12, [b, c], images, 'nonfinite', 'nan'),
        line(30, [c, a], images, norm=20.0),
        line(30, [b, b], images, norm=30.0),
    ]
    text = '\n'.join(json.dumps(row) for row in rows)
    (tmp_path / 'spikes.jsonl').write_text(f'{text}\n{{"iter": 31, "ca')
    return tmp_path


def test_reading(work_dir):
    spikes = read_spikes(work_dir)
    assert [spike.iter for spike in spikes] == [7, 12, 30]
    assert np.isnan(spikes[1].grad_norm) and spikes[1].size == np.inf
    assert spikes[2].grad_norm == 30.0, 'the later line of an iteration that was trained again'
    assert spikes[0].size == 25.0 and spikes[0].losses['loss_bbox'] == 2.0
    ranking = rank_images(spikes)
    assert [(image.path.rpartition('/')[2], count) for image, count in ranking] == [
        ('b.jpg', 3),
        ('a.jpg', 1),
        ('c.jpg', 1),
    ]


@pytest.mark.parametrize(
    ('content', 'message'),
    [(None, 'GClipSpikeHook writes it'), ('{}\n{}\n', 'line 1 is no spike'), ('x\n{}', 'line 1')],
)
def test_reading_something_else(tmp_path, content, message):
    if content is not None:
        (tmp_path / 'spikes.jsonl').write_text(content)
    with pytest.raises(SpikesError, match=message):
        read_spikes(tmp_path)


@pytest.fixture
def config_file(images, tmp_path):
    path = tmp_path / 'config.py'
    config(voc(images)).dump(path)
    return str(path)


def test_the_sheets_and_the_list(tool, config_file, work_dir, capsys):
    assert tool.main([config_file, str(work_dir)]) == 0
    text = capsys.readouterr().out.splitlines()
    assert text[0].startswith('3 spikes')
    assert 'b.jpg' in text[1] and 'outside the image, 12000 x 25' in text[1]
    assert any('c.jpg' in row and 'of the values are 0 or 255' in row for row in text)
    assert not any('a.jpg' in row and '<-' in row for row in text)
    sheets = sorted(path.name for path in (work_dir / 'spike_sheets').iterdir())
    assert sheets == ['iter_000007.png', 'iter_000012.png', 'iter_000030.png']
    assert matplotlib.image.imread(work_dir / 'spike_sheets' / sheets[0]).std() > 0.05


def test_what_is_drawn(tool, config_file, work_dir):
    looked = tool.Looked(AnnotationIndex(Config.fromfile(config_file)))
    spike = read_spikes(work_dir)[0]
    figure = tool.draw_spike(spike, looked, {image.name: 1 for image in spike.images})
    good, bad = figure.axes
    assert [p.get_edgecolor()[:3] for p in good.patches] == [
        matplotlib.colors.to_rgb(tool.SOUND)
    ] * 2
    colors = [p.get_edgecolor()[:3] for p in bad.patches]
    assert colors == [matplotlib.colors.to_rgb(c) for c in (tool.SOUND, tool.FAULTY)]
    rectangle = bad.patches[1]
    assert (rectangle.get_x(), rectangle.get_width()) == (-3000, 12000)
    assert bad.get_xlim() == (-0.5, WIDTH - 0.5), 'the image keeps its size'
    assert 'iteration 7: norm, gradient norm 50' in figure.get_suptitle()


def test_chosen_iterations_and_limits(tool, config_file, work_dir, tmp_path):
    out = tmp_path / 'out'
    assert tool.main([config_file, str(work_dir), '--out', str(out), '--limit', '1']) == 0
    assert [path.name for path in out.iterdir()] == ['iter_000012.png'], 'the worst is not finite'
    assert tool.main([config_file, str(work_dir), '--out', str(out), '--iter', '7']) == 0
    assert {path.name for path in out.iterdir()} == {'iter_000012.png', 'iter_000007.png'}


def test_an_image_that_is_gone_is_said_to_be(tool, config_file, work_dir, capsys, tmp_path):
    row = line(1, [(0, 'gone.jpg')], tmp_path)
    path = tmp_path / 'other.jsonl'
    path.write_text(json.dumps(row))
    assert tool.main([config_file, str(path), '--out', str(tmp_path / 'o')]) == 0
    text = capsys.readouterr().out
    assert 'gone.jpg  <- cannot be read; is not in the data set of the config' in text


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['{config}', 'gone.jsonl'], 'gone.jsonl is not there'),
        (['gone.py', '{work_dir}'], "config 'gone.py' is not there"),
        (['{config}', '{work_dir}', '--iter', '8'], '--iter: no spike at 8'),
    ],
)
def test_errors_in_one_line(tool, config_file, work_dir, capsys, arguments, message):
    arguments = [text.format(config=config_file, work_dir=work_dir) for text in arguments]
    assert tool.main(arguments) == 1
    assert message in capsys.readouterr().err
