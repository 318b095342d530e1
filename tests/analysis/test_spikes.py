"""Annotations are found and their faults named; spikes.jsonl is read."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from mmengine.config import Config

from gclip_mm.analysis.annotations import (
    NOT_FINITE,
    AnnotationIndex,
    box_faults,
    pixel_fault,
    read_pixels,
)
from gclip_mm.analysis.spikes import SpikesError, rank_images, read_spikes
from tests.analysis.spike_data import BOXES, HEIGHT, WIDTH, coco, config, voc


@pytest.mark.parametrize('kind', [coco, voc])
@pytest.mark.parametrize('wrapped', [False, True])
def test_boxes_equal_those_of_the_data_set(faulty_images, kind, wrapped):
    dataset = kind(faulty_images)
    if wrapped:
        inner = dict(type='ConcatDataset', datasets=[dataset])
        dataset = dict(type='RepeatDataset', times=3, dataset=inner)
    index = AnnotationIndex(config(dataset))
    assert len(index) == 3
    for name, boxes in BOXES.items():
        found = index.find(str(faulty_images / 'JPEGImages' / name))
        np.testing.assert_allclose(found.boxes, np.array(boxes, float))
        assert found.labels == ['cell'] * len(boxes) and not found.ignored.any()
    assert index.find('elsewhere.png') is None
    first = 10 if kind is coco else 'a'
    assert index.find(None, first).path.endswith('a.jpg')


def test_config_without_training_data_is_an_error():
    with pytest.raises(ValueError, match='train_dataloader'):
        AnnotationIndex(Config(dict()))


def test_box_faults_are_named():
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


@pytest.mark.parametrize('channels', [1, 3, 4])
@pytest.mark.parametrize('scale', [1.0, 255.0])
def test_float_files_are_shown_and_their_bad_pixels_marked(tmp_path, channels, scale):
    image = np.random.default_rng(0).uniform(0.2, 0.8, (6, 8, channels)).astype(np.float32)
    image[0, 0, 0] = 1.0
    path = str(tmp_path / 'a.tiff')
    cv2.imwrite(path, image * scale)
    pixels, fault = read_pixels(path)
    expected = np.broadcast_to(image if channels == 1 else image[..., 2::-1], (6, 8, 3))
    assert pixels.dtype == np.uint8 and fault is None
    np.testing.assert_allclose(pixels, 255 * expected, atol=1)
    image[2:4, 5, 0] = np.inf
    image[4, 5, -1 if channels < 4 else 2] = np.nan
    cv2.imwrite(path, image * scale)
    pixels, fault = read_pixels(path)
    assert fault == '3 pixels are not finite'
    bad = np.zeros((6, 8), bool)
    bad[2:5, 5] = True
    assert (pixels[bad] == NOT_FINITE).all()
    np.testing.assert_allclose(pixels[~bad], 255 * expected[~bad], atol=1)


def test_read_pixels_agrees_with_opencv_and_names_a_missing_file(tmp_path):
    image = np.random.default_rng(0).integers(60, 200, (6, 8, 3), np.uint8)
    cv2.imwrite(str(tmp_path / 'a.png'), image)
    pixels, fault = read_pixels(str(tmp_path / 'a.png'))
    np.testing.assert_array_equal(pixels, image[..., ::-1])
    assert fault is None
    assert read_pixels(str(tmp_path / 'gone.png')) == (None, 'cannot be read')


def test_pixel_faults_are_named():
    image = np.random.default_rng(0).integers(20, 230, (20, 20, 3), np.uint8)
    assert pixel_fault(image) is None
    assert 'one colour' in pixel_fault(np.full_like(image, 7))
    image[:15] = 255
    assert '75%' in pixel_fault(image)


def test_spikes_are_read_and_images_ranked(spiked_run):
    spikes = read_spikes(spiked_run)
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
    [(None, 'GClipSpikeHook writes it'), ('{}\n{}\n', 'line 1 is malformed'), ('x\n{}', 'line 1')],
)
def test_malformed_spikes_file_is_an_error(tmp_path, content, message):
    if content is not None:
        (tmp_path / 'spikes.jsonl').write_text(content)
    with pytest.raises(SpikesError, match=message):
        read_spikes(tmp_path)
