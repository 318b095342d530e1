"""Checks the JSON of ShapeScenes against the pixels and against independent formulas."""

from __future__ import annotations

import contextlib
import io
from collections import Counter, defaultdict

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from gclip_mm.datasets.shape_scenes import CLASSES, METAINFO, PREDICATES, SCENES
from gclip_mm.datasets.shape_scenes.sampling import encode_rle
from gclip_mm.datasets.shape_scenes.shapes import coverage
from gclip_mm.datasets.shape_scenes.vocabulary import (
    HOST_CLASSES,
    SCENE_TEXTURES,
    SCENE_TYPICAL_CLASSES,
)


@pytest.fixture(scope='module')
def coco(small_root) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(small_root / 'annotations/train.json'))


@pytest.fixture(scope='module')
def named_relations(train_json) -> list[tuple[dict, dict, str]]:
    by_id = {ann['id']: ann for ann in train_json['annotations']}
    names = {p['id']: p['name'] for p in train_json['predicates']}
    return [
        (by_id[r['subject_id']], by_id[r['object_id']], names[r['predicate_id']])
        for r in train_json['relations']
    ]


def of(named_relations, *predicates):
    return [(s, o, p) for s, o, p in named_relations if p in predicates]


def test_vocabulary_names_are_unique_and_consistent():
    assert len(CLASSES) >= 8 and len(set(CLASSES)) == len(CLASSES)
    assert len(METAINFO['palette']) == len(CLASSES)
    assert len(SCENES) >= 5 and set(SCENE_TEXTURES) == set(SCENE_TYPICAL_CLASSES) == set(SCENES)
    assert set(HOST_CLASSES) <= set(CLASSES)
    for pair in METAINFO['flip_predicate_pairs']:
        assert set(pair) <= set(PREDICATES)


def test_ids_and_labels_refer_to_existing_entries(train_json, small_root):
    images = {image['id']: image for image in train_json['images']}
    anns = {ann['id']: ann for ann in train_json['annotations']}
    assert len(images) == len(train_json['images']) == 60
    assert len(anns) == len(train_json['annotations'])
    assert [c['id'] for c in train_json['categories']] == list(range(1, len(CLASSES) + 1))
    assert tuple(p['name'] for p in train_json['predicates']) == PREDICATES
    assert tuple(s['name'] for s in train_json['scenes']) == SCENES
    for image in images.values():
        picture = cv2.imread(str(small_root / 'train' / image['file_name']))
        assert picture.shape == (image['height'], image['width'], 3)
        assert 0 <= image['scene'] < len(SCENES)
    pairs = set()
    for rel in train_json['relations']:
        subject, other = anns[rel['subject_id']], anns[rel['object_id']]
        assert subject['image_id'] == other['image_id'] == rel['image_id']
        assert subject is not other
        assert 0 <= rel['predicate_id'] < len(PREDICATES)
        pairs.add(frozenset((rel['subject_id'], rel['object_id'])))
    assert len(pairs) == len(train_json['relations'])  # a pair is annotated once, in one direction


def test_boxes_and_areas_equal_those_of_pycocotools_masks(coco):
    for ann in coco.dataset['annotations']:
        mask = coco.annToMask(ann)
        ys, xs = np.nonzero(mask)
        x, y, w, h = ann['bbox']
        assert (x, y, x + w, y + h) == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
        assert ann['area'] == mask.sum() > 0
        assert coco_mask.area(coco.annToRLE(ann)) == ann['area']
        fx, fy, fw, fh = ann['full_bbox']
        assert fx <= x and fy <= y and x + w <= fx + fw and y + h <= fy + fh
        assert 0.5 <= ann['visibility'] <= 1


def test_masks_of_an_image_are_disjoint(coco):
    for image_id in coco.getImgIds():
        anns = coco.loadAnns(coco.getAnnIds(imgIds=[image_id]))
        assert sum(coco.annToMask(ann).astype(int) for ann in anns).max() == 1


@pytest.mark.parametrize('first', [0, 1])
def test_encode_rle_equals_pycocotools(first):
    mask = np.random.default_rng(first).random((7, 5)) < 0.5
    mask[0, 0] = first
    theirs = coco_mask.decode(coco_mask.frPyObjects(encode_rle(mask), 7, 5))
    assert np.array_equal(theirs.astype(bool), mask)


def test_directions_agree_with_visible_centroids(coco, named_relations):
    def centroid(ann):
        ys, xs = np.nonzero(coco.annToMask(ann))
        return xs.mean(), ys.mean()

    found = of(named_relations, 'left of', 'right of', 'above', 'below')
    assert {p for _, _, p in found} == {'left of', 'right of', 'above', 'below'}
    for subject, other, predicate in found:
        dx, dy = np.subtract(centroid(subject), centroid(other))
        sign = {'left of': -dx, 'right of': dx, 'above': -dy, 'below': dy}[predicate]
        cross = dy if predicate in ('left of', 'right of') else dx
        assert sign > abs(cross)


def test_inside_object_lies_in_hull_of_outer_object(coco, named_relations):
    found = of(named_relations, 'inside', 'around')
    assert {p for _, _, p in found} == {'inside', 'around'}
    for subject, other, predicate in found:
        inner, outer = (subject, other) if predicate == 'inside' else (other, subject)
        ys, xs = np.nonzero(coco.annToMask(outer))
        hull = cv2.convexHull(np.stack([xs, ys], axis=1).astype(np.int32))
        filled = cv2.fillConvexPoly(np.zeros(coco.annToMask(outer).shape, np.uint8), hull, 1)
        inner_mask = coco.annToMask(inner).astype(bool)
        assert filled[inner_mask].mean() == 1
        assert inner['area'] < filled.sum() / 2


def test_front_object_hides_part_of_back_object(coco, named_relations):
    found = of(named_relations, 'in front of', 'behind')
    assert {p for _, _, p in found} == {'in front of', 'behind'}
    for subject, other, predicate in found:
        front, back = (subject, other) if predicate == 'in front of' else (other, subject)
        assert front['depth'] > back['depth']
        assert back['visibility'] < 1
        # The front object touches the visible part of the back object.
        grown = cv2.dilate(coco.annToMask(front), np.ones((3, 3), np.uint8))
        assert (grown & coco.annToMask(back)).any()


def test_occlusion_is_common(train_json):
    hidden = [ann['visibility'] < 0.97 for ann in train_json['annotations']]
    assert 0.1 < np.mean(hidden) < 0.6


def test_object_sizes_vary(train_json):
    sides = [max(ann['full_bbox'][2:]) for ann in train_json['annotations']]
    assert np.percentile(sides, 95) > 2 * np.percentile(sides, 5)


def test_brightness_varies(small_root, train_json):
    means = []
    for image in train_json['images']:
        picture = cv2.imread(str(small_root / 'train' / image['file_name']))
        means.append(picture.mean())
    assert np.std(means) > 10


def test_same_color_objects_have_equal_hue_in_picture(small_root, coco, named_relations):
    def hue(ann):
        picture = cv2.imread(str(small_root / 'train' / f'{ann["image_id"]:06d}.jpg'))
        # Use the middle of the shape: at its edge JPEG blends in the surrounding colors.
        depth = cv2.distanceTransform(coco.annToMask(ann), cv2.DIST_L2, 3)
        b, g, r = np.median(picture[depth > 0.6 * depth.max()], axis=0)
        return cv2.cvtColor(np.array([[[b, g, r]]], np.float32), cv2.COLOR_BGR2HSV)[0, 0, 0]

    found = of(named_relations, 'same color as')
    assert len(found) > 10
    for subject, other, _ in found:
        apart = abs(hue(subject) - hue(other)) % 360
        assert min(apart, 360 - apart) < 30


def test_larger_than_implies_larger_area(named_relations):
    found = of(named_relations, 'larger than')
    assert len(found) > 10
    for subject, other, _ in found:
        (_, _, ws, hs), (_, _, wo, ho) = subject['full_bbox'], other['full_bbox']
        assert ws * hs >= 2 * wo * ho


def expected_predicate(subject: dict, other: dict) -> str | None:
    """The documented definition, implemented on the values in the JSON."""
    sx, sy, sw, sh = subject['full_bbox']
    ox, oy, ow, oh = other['full_bbox']

    def within(ax, ay, aw, ah, a, bx, by, bw, bh, b):
        inside = bx <= ax and by <= ay and ax + aw <= bx + bw and ay + ah <= by + bh
        return inside and a['depth'] > b['depth'] and 2 * aw * ah <= bw * bh

    if within(sx, sy, sw, sh, subject, ox, oy, ow, oh, other):
        return 'inside'
    if within(ox, oy, ow, oh, other, sx, sy, sw, sh, subject):
        return 'around'
    common_w = max(0, min(sx + sw, ox + ow) - max(sx, ox))
    common_h = max(0, min(sy + sh, oy + oh) - max(sy, oy))
    if common_w * common_h >= 0.08 * min(sw * sh, ow * oh):
        return 'in front of' if subject['depth'] > other['depth'] else 'behind'
    if subject['color'] == other['color']:
        return 'same color as'
    gap_x = max(0, max(sx, ox) - min(sx + sw, ox + ow))
    gap_y = max(0, max(sy, oy) - min(sy + sh, oy + oh))
    gap = 2 * (gap_x**2 + gap_y**2) ** 0.5 / ((sw * sh) ** 0.5 + (ow * oh) ** 0.5)
    dx, dy = sx + sw / 2 - ox - ow / 2, sy + sh / 2 - oy - oh / 2
    if gap <= 0.75 and abs(dx) >= 1.6 * abs(dy):
        return 'left of' if dx < 0 else 'right of'
    if gap <= 0.75 and abs(dy) >= 1.6 * abs(dx):
        return 'above' if dy < 0 else 'below'
    if gap >= 0.9 and sw * sh >= 2 * ow * oh:
        return 'larger than'
    return None


def test_every_relation_equals_documented_definition(named_relations):
    assert {p for _, _, p in named_relations} == set(PREDICATES)
    for subject, other, predicate in named_relations:
        assert predicate == expected_predicate(subject, other)


def test_annotation_is_skewed_and_incomplete(train_json, named_relations):
    counts = Counter(p for _, _, p in named_relations)
    assert counts['left of'] > 1.5 * counts['right of']
    assert max(counts.values()) > 4 * min(counts.values())
    annotated = {frozenset((s['id'], o['id'])) for s, o, _ in named_relations}
    by_image = defaultdict(list)
    for ann in train_json['annotations']:
        by_image[ann['image_id']].append(ann)
    true = {
        frozenset((a['id'], b['id']))
        for anns in by_image.values()
        for a in anns
        for b in anns
        if a is not b and expected_predicate(a, b)
    }
    assert annotated < true
    assert 0.5 < len(annotated) / len(true) < 0.95


def test_classes_alone_predict_predicate_poorly(named_relations):
    """The best guess from the two classes is right in less than half of the relations."""
    votes = defaultdict(Counter)
    for subject, other, predicate in named_relations:
        votes[subject['category_id'], other['category_id']][predicate] += 1
    # Leave one out: majority vote of the other pairs with the same classes.
    right = 0
    for subject, other, predicate in named_relations:
        rest = votes[subject['category_id'], other['category_id']].copy()
        rest[predicate] -= 1
        right += rest.most_common(1)[0][0] == predicate and rest.most_common(1)[0][1] > 0
    assert right / len(named_relations) < 0.5


def test_ring_has_hole_and_circle_has_none():
    ring = coverage('ring', (32, 32), 20, 0, 1.0, (64, 64))
    disc = coverage('circle', (32, 32), 20, 0, 1.0, (64, 64))
    assert ring[32, 32] == 0 and disc[32, 32] == 255
    assert abs((disc > 127).sum() / (np.pi * 20**2) - 1) < 0.03


@pytest.mark.parametrize('shape', CLASSES)
def test_shapes_stay_in_their_circle_and_rotate(shape):
    mask = coverage(shape, (40, 40), 24, 0, 1.0, (80, 80)) > 127
    ys, xs = np.nonzero(mask)
    assert np.hypot(xs - 39.5, ys - 39.5).max() <= 25.5
    quarter = coverage(shape, (40, 40), 24, 90, 1.0, (80, 80)) > 127
    # np.rot90 rotates counter-clockwise; coverage() rotates clockwise, with y pointing down.
    agree = np.rot90(mask, -1)
    assert (quarter != agree).sum() <= 0.06 * mask.sum() + 12
