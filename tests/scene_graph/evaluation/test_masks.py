"""Matching by masks equals OpenPSG's evaluator, and that of the single-mask protocol."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.structures import InstanceData

from gclip_mm.scene_graph.boxes import box_iou
from gclip_mm.scene_graph.evaluation import SceneGraphMetric
from gclip_mm.scene_graph.evaluation.masks import one_mask_each, one_to_one
from gclip_mm.scene_graph.evaluation.matching import NO_HIT, match_image
from gclip_mm.scene_graph.evaluation.options import RecallOptions
from gclip_mm.scene_graph.segments import mask_iou, masks_of, merge_masks, read_segments

from .random_segments import NUM_PREDICATES, random_picture

EVALUATORS = json.loads((Path(__file__).parent / 'mask_evaluators.json').read_text())


def write_segments(path, segments):
    """COCO's panoptic PNG: red + 256 green + 65536 blue."""
    red, green, blue = segments % 256, segments // 256 % 256, segments // 65536
    cv2.imwrite(str(path), np.stack((blue, green, red), axis=-1).astype(np.uint8))


def sample_of(path, truth, prediction, masks):
    """Data sample as a dict, as MMEngine's evaluator passes it."""
    height, width = truth['segments'].shape
    objects = dict(
        bboxes=torch.from_numpy(prediction['bboxes']),
        labels=torch.from_numpy(prediction['labels']),
        scores=torch.from_numpy(prediction['scores']),
    )
    if masks is not None:
        objects['masks'] = torch.from_numpy(masks)
    relations = torch.from_numpy(truth['relations'])
    return dict(
        img_path=str(path),
        seg_map_path=str(path),
        ori_shape=(height, width),
        img_shape=(height, width),
        gt_instances=dict(
            bboxes=torch.from_numpy(truth['bboxes']),
            labels=torch.from_numpy(truth['labels']),
            segment_ids=torch.arange(1, len(truth['labels']) + 1) * 1000,
        ),
        gt_relations=dict(pairs=relations[:, :2], labels=relations[:, 2]),
        pred_instances=objects,
        pred_relations=dict(
            pairs=torch.from_numpy(prediction['pairs']),
            scores=torch.from_numpy(prediction['rel_scores']),
        ),
    )


def evaluate(tmp_path, seeds, edit=None, **options):
    metric = SceneGraphMetric(box_metric=False, **options)
    metric.dataset_meta = dict(predicates=[str(i) for i in range(NUM_PREDICATES)])
    for seed in seeds:
        truth, prediction, masks = random_picture(seed)
        path = tmp_path / f'{seed}.png'
        write_segments(path, truth['segments'] * 1000)
        sample = sample_of(path, truth, prediction, masks)
        if edit:
            edit(sample)
        metric.process({}, [sample])
    return metric.evaluate(len(seeds))


@pytest.mark.parametrize('match', ['mask', 'single_mask'])
def test_recall_equals_the_published_evaluators(tmp_path, match):
    published = EVALUATORS[match]
    ks = [int(k) for k in published]
    result = evaluate(tmp_path, range(40), match=match, ks=ks)
    for k in ks:
        assert result[f'sg/R@{k}'] == pytest.approx(np.mean(published[str(k)]) / 6, abs=1e-12)
    for seed in (0, 17, 39):  # single pictures too, for a mean could be right by chance
        alone = evaluate(tmp_path, [seed], match=match, ks=ks)
        assert [round(6 * alone[f'sg/R@{k}']) for k in ks] == [published[str(k)][seed] for k in ks]


def test_masks_and_boxes_are_different_metrics(tmp_path):
    found = {m: evaluate(tmp_path, range(10), match=m)['sg/R@50'] for m in ('box', 'mask')}
    assert found['box'] != found['mask'] and min(found.values()) > 0


@pytest.mark.parametrize('match', ['mask', 'single_mask'])
def test_given_objects_have_the_masks_of_the_ground_truth(tmp_path, match):
    def perfect(sample):
        truth = sample['gt_instances']
        sample['pred_instances'] = dict(
            bboxes=truth['bboxes'], labels=truth['labels'], scores=torch.ones(len(truth['labels']))
        )
        pairs, labels = sample['gt_relations']['pairs'], sample['gt_relations']['labels']
        scores = torch.nn.functional.one_hot(labels, NUM_PREDICATES).float()
        sample['pred_relations'] = dict(pairs=pairs, scores=scores)

    result = evaluate(tmp_path, range(3), perfect, match=match, protocol='predcls')
    assert result['sg/R@20'] == result['sg/A@20'] == 1.0


def test_masks_of_another_size_are_scaled(tmp_path):
    def halve(sample):
        masks = sample['pred_instances']['masks']
        sample['pred_instances']['masks'] = masks.repeat_interleave(2, 1).repeat_interleave(2, 2)

    assert evaluate(tmp_path, [3], halve, match='mask') == evaluate(tmp_path, [3], match='mask')


@pytest.mark.parametrize(
    ('key', 'message'),
    [
        ('masks', 'no pred_instances.masks: matching by masks needs a detector with masks'),
        ('segment_ids', r'no gt_instances.segment_ids: .*with_seg=True'),
        ('seg_map_path', "no seg_map_path: .*'seg_map_path' in the meta_keys"),
    ],
)
def test_missing_masks_are_an_error(tmp_path, key, message):
    def without(sample):
        for part in (sample, sample['gt_instances'], sample['pred_instances']):
            part.pop(key, None)

    with pytest.raises(ValueError, match=message):
        evaluate(tmp_path, [0], without, match='mask')


def test_an_unknown_match_is_an_error():
    with pytest.raises(ValueError, match=r"must be one of \('box', 'mask', 'single_mask'\)"):
        SceneGraphMetric(match='pixel')


def test_phrases_are_matched_by_boxes_only(tmp_path):
    by_box = evaluate(tmp_path, range(3), convention='psg')
    by_mask = evaluate(tmp_path, range(3), convention='psg', match='mask')
    assert set(by_box) - set(by_mask) == {key for key in by_box if 'phr' in key} != set()
    with pytest.raises(ValueError, match="phrase=True needs match='box', got match='mask'"):
        SceneGraphMetric(match='mask', phrase=True)


def test_a_given_iou_replaces_that_of_the_boxes():
    truth, prediction, _ = random_picture(2)
    shape = len(prediction['labels']), len(truth['labels'])
    by_iou = match_image(prediction, truth, iou=box_iou(prediction['bboxes'], truth['bboxes']))
    np.testing.assert_equal(by_iou._asdict(), match_image(prediction, truth)._asdict())
    assert (by_iou.rank != NO_HIT).any()
    nothing = match_image(prediction, truth, iou=np.zeros(shape))
    assert (nothing.rank == NO_HIT).all() and (nothing.rank_ng == NO_HIT).all()
    with pytest.raises(ValueError, match=r'iou must have shape'):
        match_image(prediction, truth, iou=np.zeros((shape[0] + 1, shape[1])))
    with pytest.raises(ValueError, match='set phrase=False with iou'):
        match_image(prediction, truth, iou=np.zeros(shape), options=RecallOptions(phrase=True))


# -- Segments --------------------------------------------------------------------------------------


def rows(*spans):
    """Masks (N, 1, 12): each covers the columns of its spans."""
    masks = np.zeros((len(spans), 1, 12), bool)
    for mask, (start, stop) in zip(masks, spans, strict=True):
        mask[0, start:stop] = True
    return masks


def test_iou_of_masks_by_hand():
    iou = mask_iou(rows((0, 4), (5, 5)), rows((2, 6), (0, 4), (5, 5)))
    np.testing.assert_allclose(iou, [[2 / 6, 1, 0], [0, 0, 0]])
    with pytest.raises(ValueError, match=r'masks of \(1, 12\) and \(2, 12\) pixels'):
        mask_iou(rows((0, 4)), np.zeros((1, 2, 12), bool))


def test_merging_by_hand():
    # The second is a duplicate of the first (IoU 0.8), the third keeps what is left of it, the
    # fourth is covered by the first (IoU 0.25) and dropped.
    masks = rows((0, 8), (0, 10), (6, 12), (0, 2))
    merged, became = merge_masks(masks, np.array([0.9, 0.8, 0.7, 0.6]))
    assert became.tolist() == [0, 0, 1, -1]
    np.testing.assert_array_equal(merged, rows((0, 8), (8, 12)))


def test_merged_objects_keep_the_best_prediction():
    prediction = dict(
        bboxes=np.arange(12.0).reshape(3, 4),
        labels=np.array([0, 1, 2]),
        scores=np.array([0.5, 0.9, 0.8]),  # 0 is a duplicate of 1
        pairs=np.array([[0, 2], [1, 2], [2, 0]]),
        rel_scores=np.array([[0.9, 0.0], [0.1, 0.8], [0.2, 0.1]]),
    )
    merged, masks = one_mask_each(prediction, rows((0, 5), (0, 4), (6, 12)))
    assert len(masks) == 2
    assert merged['labels'].tolist() == [1, 2] and merged['scores'].tolist() == [0.9, 0.8]
    assert merged['pairs'].tolist() == [[0, 1], [1, 0]]
    # 0.9 * 0.8 * 0.8 is above 0.5 * 0.8 * 0.9.
    assert merged['rel_scores'].tolist() == [[0.1, 0.8], [0.2, 0.1]]


def test_objects_match_one_to_one():
    iou = np.array([[0.6, 0.0], [0.9, 0.4], [0.0, 0.5], [0.7, 0.7]])
    labels, truth = np.array([0, 0, 1, 1]), np.array([0, 1])
    expected = np.zeros((4, 2))
    expected[1, 0], expected[3, 1] = 0.9, 0.7  # 0.5 is not above 0.5
    np.testing.assert_array_equal(one_to_one(iou, labels, truth, 0.5), expected)


def test_panoptic_ids_are_read_as_coco_writes_them(tmp_path):
    ids = np.array([[0, 255, 256], [65536, 3226756, 16777215]])
    write_segments(tmp_path / 's.png', ids)
    np.testing.assert_array_equal(read_segments(str(tmp_path / 's.png')), ids)
    masks = masks_of(ids, [3226756, 7])
    assert masks.sum(axis=(1, 2)).tolist() == [1, 0] and masks[0, 1, 1]
    with pytest.raises(FileNotFoundError, match='no panoptic picture'):
        read_segments(str(tmp_path / 'none.png'))


# -- The data pipeline -----------------------------------------------------------------------------


@pytest.fixture
def psg(tmp_path):
    """A data set of one picture with three segments, made by the converter."""
    from gclip_mm.scene_graph.datasets import SceneGraphDataset, SceneGraphWriter

    segments = np.zeros((40, 60), np.int64)
    segments[:, :20], segments[10:30, 30:50] = 700, 70000
    write_segments(tmp_path / 'seg.png', segments)
    cv2.imwrite(str(tmp_path / 'a.jpg'), np.full((40, 60, 3), 90, np.uint8))
    writer = SceneGraphWriter(['sky', 'dog'], ['on', 'near'])
    writer.add_image(
        'a.jpg',
        60,
        40,
        [[0, 0, 20, 40], [30, 10, 50, 30], [0, 0, 60, 40]],
        [0, 1, 0],
        [[1, 0, 0]],
        segments=('seg.png', [700, 70000, 0]),
    )
    writer.write(tmp_path / 'train.json')

    def build(*steps, **loading):
        return SceneGraphDataset(
            ann_file='train.json',
            data_root=str(tmp_path),
            data_prefix=dict(img=''),
            pipeline=[
                dict(type='LoadImageFromFile'),
                dict(type='mmdet.LoadSceneGraphAnnotations', **loading),
                *steps,
                dict(
                    type='mmdet.PackSceneGraphInputs',
                    meta_keys=('img_path', 'seg_map_path', 'ori_shape', 'img_shape'),
                ),
            ],
        )

    return build


def test_segments_pass_through_the_pipeline(psg, tmp_path):
    resize = dict(type='mmdet.Resize', scale=(120, 80), keep_ratio=True)
    sample = psg(resize, dict(type='mmdet.RandomFlip', prob=1.0), with_seg=True)[0]['data_samples']
    instances: InstanceData = sample.gt_instances
    assert instances.segment_ids.tolist() == [700, 70000, 0]
    assert sample.seg_map_path == str(tmp_path / 'seg.png')
    masks = instances.masks.to_ndarray().astype(bool)
    assert masks.shape == (3, 80, 120)
    assert masks.sum(axis=(1, 2)).tolist() == [4 * 800, 4 * 400, 4 * 1200]
    assert masks[0, :, 80:].all() and not masks[0, :, :80].any()  # flipped


def test_a_file_without_segments_is_an_error(psg, tmp_path):
    content = json.loads((tmp_path / 'train.json').read_text())
    del content['annotations'][1]['segment_id']
    (tmp_path / 'train.json').write_text(json.dumps(content))
    with pytest.raises(RuntimeError, match='"segment_id" of box 2'):
        psg(with_seg=True)[0]
    del content['images'][0]['pan_seg_file_name']
    (tmp_path / 'train.json').write_text(json.dumps(content))
    with pytest.raises(RuntimeError, match='no "pan_seg_file_name" for'):
        psg(with_seg=True)[0]
    assert 'masks' not in psg()[0]['data_samples'].gt_instances


def test_masks_are_drawn_over_the_picture(psg):
    from gclip_mm.scene_graph.visualization.drawing import _over_masks
    from gclip_mm.scene_graph.visualization.graph import build_graph

    dataset = psg(with_seg=True)
    graph = build_graph(dataset[0]['data_samples'], (40, 60), dataset.metainfo)
    assert [int(node.mask.sum()) for node in graph.nodes] == [800, 400, 1200]
    image = np.full((40, 60, 3), 90, np.uint8)
    colors = [(1.0, 0, 0), (0, 1.0, 0), (0, 0, 1.0)]
    drawn = _over_masks(image, graph.nodes, colors)
    assert drawn[0, 0].tolist() == [172, 45, 45] and drawn[15, 35].tolist() == [45, 172, 45]
    assert drawn[0, 59].tolist() == [45, 45, 172]
