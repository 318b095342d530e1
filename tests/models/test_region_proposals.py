"""Region proposals by segmentation and by selective search: recall, determinism, errors."""

from __future__ import annotations

import sys
from importlib.util import find_spec

import cv2
import numpy as np
import pytest

from gclip_mm.datasets.shape_scenes.sampling import draw_sample
from gclip_mm.models import selective_search as module
from gclip_mm.models.felzenszwalb import felzenszwalb_boxes
from gclip_mm.models.selective_search import selective_search

needs_skimage = pytest.mark.skipif(
    find_spec('skimage') is None, reason='scikit-image is not installed'
)
needs_contrib = pytest.mark.skipif(
    not hasattr(cv2, 'ximgproc'), reason='OpenCV without its contrib modules'
)
FELZENSZWALB = pytest.param(felzenszwalb_boxes, id='felzenszwalb', marks=needs_skimage)
SELECTIVE_SEARCH = pytest.param(selective_search, id='selective_search', marks=needs_contrib)
both = pytest.mark.parametrize('propose', [FELZENSZWALB, SELECTIVE_SEARCH])


def iou(a, b):
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=2)
    areas = [np.prod(x[:, 2:] - x[:, :2], axis=1) for x in (a, b)]
    return shared / (areas[0][:, None] + areas[1][None] - shared)


@needs_skimage
def test_felzenszwalb_proposes_rectangle():
    image = np.full((60, 80, 3), 40, np.uint8)
    image[10:40, 20:70] = (30, 160, 220)
    boxes, scores = felzenszwalb_boxes(image)
    # Smoothing with sigma 0.8 may move an edge by one pixel.
    assert np.abs(boxes - [20, 10, 70, 40]).max(axis=1).min() <= 1
    assert boxes.dtype == scores.dtype == np.float32


@pytest.mark.parametrize(
    ('propose', 'mode', 'pictures'),
    [
        pytest.param(*FELZENSZWALB.values, 'quality', 2, marks=needs_skimage, id='felzenszwalb'),
        pytest.param(*SELECTIVE_SEARCH.values, 'fast', 5, marks=needs_contrib, id='selective'),
    ],
)
def test_proposals_cover_shape_scenes_objects(propose, mode, pictures):
    hits = []
    for index in range(pictures):
        drawn = draw_sample(0, 'train', index, (160, 128))
        boxes, scores = propose(drawn.image, mode=mode)
        truth = np.array([obj['bbox'] for obj in drawn.objects], float)
        truth[:, 2:] += truth[:, :2]
        hits += list(iou(truth, boxes).max(axis=1) >= 0.5)
        assert boxes.dtype == scores.dtype == np.float32
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert (boxes >= 0).all() and (boxes <= [160, 128, 160, 128]).all()
        assert len(np.unique(boxes, axis=0)) == len(boxes)
        assert (np.diff(scores) < 0).all() and scores[0] == 1
    assert np.mean(hits) > 0.9


@both
def test_proposals_are_deterministic_and_max_num_keeps_first(propose):
    image = draw_sample(0, 'train', 0, (160, 128)).image
    first, _ = propose(image)
    again, _ = propose(image)
    np.testing.assert_array_equal(first, again)
    for count in (5, 10):
        few, scores = propose(image, max_num=count)
        np.testing.assert_array_equal(few, first[:count])
        assert len(scores) == count


@both
def test_boxes_of_wide_image_are_in_original_pixels(propose):
    image = draw_sample(0, 'train', 0, (160, 128)).image
    wide = cv2.resize(image, (1600, 1280), interpolation=cv2.INTER_NEAREST)
    expected, _ = propose(image)
    got, _ = propose(wide, max_width=160)
    np.testing.assert_allclose(got, expected * 10)


@both
@pytest.mark.parametrize(
    ('options', 'word'),
    [(dict(mode='best'), 'mode'), (dict(max_num=0), 'max_num'), (dict(max_width=0), 'max_width')],
)
def test_bad_option_raises_with_its_name(propose, options, word):
    with pytest.raises(ValueError, match=word):
        propose(np.zeros((8, 8, 3), np.uint8), **options)


@both
@pytest.mark.parametrize('image', [np.zeros((8, 8, 3)), np.zeros((8, 8), np.uint8)])
def test_wrong_image_dtype_or_shape_raises(propose, image):
    with pytest.raises(ValueError, match='image must be uint8'):
        propose(image)


def test_missing_scikit_image_raises_with_install_command(monkeypatch):
    monkeypatch.setitem(sys.modules, 'skimage.segmentation', None)
    monkeypatch.setitem(sys.modules, 'skimage', None)
    with pytest.raises(ImportError, match='pip install scikit-image'):
        felzenszwalb_boxes(np.zeros((8, 8, 3), np.uint8))


def test_opencv_without_contrib_raises_with_install_command(monkeypatch):
    monkeypatch.delattr(module.cv2, 'ximgproc', raising=False)
    with pytest.raises(ImportError, match='opencv-contrib-python-headless'):
        selective_search(np.zeros((8, 8, 3), np.uint8))
