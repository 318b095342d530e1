"""Selective search: recall, determinism, errors."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from gclip_mm.datasets.shape_scenes.sampling import draw_sample
from gclip_mm.models import selective_search as module
from gclip_mm.models.selective_search import selective_search

needs_contrib = pytest.mark.skipif(
    not hasattr(cv2, 'ximgproc'), reason='OpenCV without its contrib modules'
)


def iou(a, b):
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=2)
    areas = [np.prod(x[:, 2:] - x[:, :2], axis=1) for x in (a, b)]
    return shared / (areas[0][:, None] + areas[1][None] - shared)


@needs_contrib
def test_proposals_cover_shape_scenes_objects():
    hits = []
    for index in range(5):
        drawn = draw_sample(0, 'train', index, (160, 128))
        boxes, scores = selective_search(drawn.image)
        truth = np.array([obj['bbox'] for obj in drawn.objects], float)
        truth[:, 2:] += truth[:, :2]
        hits += list(iou(truth, boxes).max(axis=1) >= 0.5)
        assert boxes.dtype == scores.dtype == np.float32
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert (boxes >= 0).all() and (boxes <= [160, 128, 160, 128]).all()
        assert len(np.unique(boxes, axis=0)) == len(boxes)
        assert (np.diff(scores) < 0).all() and scores[0] == 1
    assert np.mean(hits) > 0.9


@needs_contrib
def test_proposals_are_deterministic():
    image = draw_sample(0, 'train', 0, (160, 128)).image
    first, _ = selective_search(image)
    again, _ = selective_search(image)
    np.testing.assert_array_equal(first, again)
    few, scores = selective_search(image, max_num=10)
    np.testing.assert_array_equal(few, first[:10])
    assert len(scores) == 10


@needs_contrib
def test_boxes_of_wide_image_are_in_original_pixels():
    image = draw_sample(0, 'train', 0, (160, 128)).image
    wide = cv2.resize(image, (1600, 1280), interpolation=cv2.INTER_NEAREST)
    expected, _ = selective_search(image)
    got, _ = selective_search(wide, max_width=160)
    np.testing.assert_allclose(got, expected * 10)


@needs_contrib
@pytest.mark.parametrize(
    ('options', 'word'), [(dict(mode='best'), 'mode'), (dict(max_num=0), 'max_num')]
)
def test_bad_option_raises_with_its_name(options, word):
    with pytest.raises(ValueError, match=word):
        selective_search(np.zeros((8, 8, 3), np.uint8), **options)


@needs_contrib
@pytest.mark.parametrize('image', [np.zeros((8, 8, 3)), np.zeros((8, 8), np.uint8)])
def test_wrong_image_dtype_or_shape_raises(image):
    with pytest.raises(ValueError, match='image must be uint8'):
        selective_search(image)


def test_opencv_without_contrib_raises_with_install_command(monkeypatch):
    monkeypatch.delattr(module.cv2, 'ximgproc', raising=False)
    with pytest.raises(ImportError, match='opencv-contrib-python-headless'):
        selective_search(np.zeros((8, 8, 3), np.uint8))
