"""Felzenszwalb proposals: recall, determinism, errors."""

from __future__ import annotations

import sys
from importlib.util import find_spec

import cv2
import numpy as np
import pytest

from gclip_mm.datasets.shape_scenes.sampling import draw_sample
from gclip_mm.models.felzenszwalb import felzenszwalb_boxes

needs_skimage = pytest.mark.skipif(
    find_spec('skimage') is None, reason='scikit-image is not installed'
)


def iou(a, b):
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=2)
    areas = [np.prod(x[:, 2:] - x[:, :2], axis=1) for x in (a, b)]
    return shared / (areas[0][:, None] + areas[1][None] - shared)


@needs_skimage
def test_rectangle_is_proposed():
    image = np.full((60, 80, 3), 40, np.uint8)
    image[10:40, 20:70] = (30, 160, 220)
    boxes, scores = felzenszwalb_boxes(image)
    # Smoothing with sigma 0.8 may move an edge by one pixel.
    assert np.abs(boxes - [20, 10, 70, 40]).max(axis=1).min() <= 1
    assert boxes.dtype == scores.dtype == np.float32


@needs_skimage
def test_proposals_cover_shape_scenes_objects():
    hits = []
    for index in range(2):
        drawn = draw_sample(0, 'train', index, (160, 128))
        boxes, scores = felzenszwalb_boxes(drawn.image, mode='quality')
        truth = np.array([obj['bbox'] for obj in drawn.objects], float)
        truth[:, 2:] += truth[:, :2]
        hits += list(iou(truth, boxes).max(axis=1) >= 0.5)
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert (boxes >= 0).all() and (boxes <= [160, 128, 160, 128]).all()
        assert len(np.unique(boxes, axis=0)) == len(boxes)
        assert (np.diff(scores) < 0).all() and scores[0] == 1
    assert np.mean(hits) > 0.9


@needs_skimage
def test_proposals_are_deterministic_and_max_num_keeps_first():
    image = draw_sample(0, 'train', 0, (160, 128)).image
    first, _ = felzenszwalb_boxes(image)
    again, _ = felzenszwalb_boxes(image)
    np.testing.assert_array_equal(first, again)
    few, scores = felzenszwalb_boxes(image, max_num=5)
    np.testing.assert_array_equal(few, first[:5])
    assert len(scores) == 5


@needs_skimage
def test_boxes_of_wide_image_are_in_original_pixels():
    image = draw_sample(0, 'train', 0, (160, 128)).image
    wide = cv2.resize(image, (1600, 1280), interpolation=cv2.INTER_NEAREST)
    expected, _ = felzenszwalb_boxes(image)
    got, _ = felzenszwalb_boxes(wide, max_width=160)
    np.testing.assert_allclose(got, expected * 10)


@needs_skimage
@pytest.mark.parametrize(
    ('options', 'word'),
    [(dict(mode='best'), 'mode'), (dict(max_num=0), 'max_num'), (dict(max_width=0), 'max_width')],
)
def test_bad_option_raises_with_its_name(options, word):
    with pytest.raises(ValueError, match=word):
        felzenszwalb_boxes(np.zeros((8, 8, 3), np.uint8), **options)


def test_missing_scikit_image_raises_with_install_command(monkeypatch):
    monkeypatch.setitem(sys.modules, 'skimage.segmentation', None)
    monkeypatch.setitem(sys.modules, 'skimage', None)
    with pytest.raises(ImportError, match='pip install scikit-image'):
        felzenszwalb_boxes(np.zeros((8, 8, 3), np.uint8))
