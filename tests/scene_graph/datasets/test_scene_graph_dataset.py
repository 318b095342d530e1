"""SceneGraphDataset: content, dropped relations, errors."""

import copy
import json
import logging
import pickle
import re

import cv2
import numpy as np
import pytest
from mmdet.registry import DATASETS
from mmengine.registry import DefaultScope

import gclip_mm.scene_graph  # noqa: F401
from gclip_mm.scene_graph.datasets import SceneGraphDataset, relation_statistics, zero_shot_triplets

# Ids are neither contiguous nor sorted on purpose: labels follow the order of the file.
CONTENT = dict(
    images=[
        dict(id=7, file_name='a.png', width=64, height=48, scene=10),
        dict(id=3, file_name='b.png', width=64, height=48, scene=20),
        dict(id=5, file_name='b.png', width=64, height=48),
    ],
    categories=[dict(id=6, name='dog'), dict(id=4, name='table'), dict(id=9, name='cup')],
    predicates=[dict(id=2, name='left of'), dict(id=3, name='right of'), dict(id=1, name='on')],
    scenes=[dict(id=20, name='kitchen'), dict(id=10, name='yard')],
    annotations=[
        dict(id=12, image_id=7, category_id=6, bbox=[2, 2, 20, 20], area=400, iscrowd=0),
        dict(id=11, image_id=7, category_id=9, bbox=[30, 4, 10, 10], area=100, iscrowd=0),
        dict(id=15, image_id=7, category_id=4, bbox=[28, 12, 30, 30], area=900, iscrowd=0),
        dict(id=16, image_id=7, category_id=4, bbox=[10, 10, 0.5, 9], area=4.5, iscrowd=0),
        dict(id=17, image_id=7, category_id=9, bbox=[40, 2, 9, 9], area=81, iscrowd=1),
        dict(id=30, image_id=3, category_id=9, bbox=[0, 0, 9, 9], area=81, iscrowd=0),
        dict(id=31, image_id=3, category_id=4, bbox=[5, 5, 9, 9], area=81, iscrowd=0),
    ],
    relations=[
        dict(image_id=7, subject_id=11, object_id=15, predicate_id=1),
        dict(image_id=7, subject_id=12, object_id=11, predicate_id=2),
        dict(image_id=7, subject_id=12, object_id=15, predicate_id=2),
        dict(image_id=7, subject_id=12, object_id=15, predicate_id=1),  # the same pair again
        dict(image_id=7, subject_id=16, object_id=15, predicate_id=1),  # has an invalid box
        dict(image_id=7, subject_id=17, object_id=12, predicate_id=3),  # has a crowd box
    ],
)
PAIRS = [('left of', 'right of')]


@pytest.fixture(autouse=True, scope='module')
def mmdet_scope():
    with DefaultScope.overwrite_default_scope('mmdet'):
        yield


@pytest.fixture
def folder(tmp_path):
    for name in ('a.png', 'b.png'):
        cv2.imwrite(str(tmp_path / name), np.zeros((48, 64, 3), np.uint8))
    return tmp_path


def build(folder, content=CONTENT, metainfo=None, pipeline=(), **kwargs):
    (folder / 'data.json').write_text(json.dumps(content))
    metainfo = dict(flip_predicate_pairs=PAIRS) if metainfo is None else metainfo
    return DATASETS.build(
        dict(
            type='SceneGraphDataset',
            data_root=str(folder),
            ann_file='data.json',
            data_prefix=dict(img=''),
            metainfo=metainfo,
            pipeline=list(pipeline),
            **kwargs,
        )
    )


def by_id(dataset):
    infos = [dataset.get_data_info(i) for i in range(len(dataset))]
    return {info['img_id']: info for info in infos}


def test_labels_follow_file_order(folder):
    dataset = build(folder)
    assert dataset.metainfo['classes'] == ('dog', 'table', 'cup')
    assert dataset.metainfo['predicates'] == ('left of', 'right of', 'on')
    assert dataset.metainfo['scenes'] == ('kitchen', 'yard')
    infos = by_id(dataset)
    assert infos.keys() == {7, 3, 5}
    assert [infos[i]['scene_label'] for i in (7, 3, 5)] == [1, 0, None]
    assert [(x['ann_id'], x['bbox_label'], x['ignore_flag']) for x in infos[7]['instances']] == [
        (12, 0, 0),
        (11, 2, 0),
        (15, 1, 0),
        (17, 2, 1),
    ]
    assert infos[7]['relations'].tolist() == [
        [11, 15, 2],
        [12, 11, 0],
        [12, 15, 0],
        [12, 15, 2],
        [17, 12, 1],
    ]
    assert infos[3]['relations'].shape == infos[5]['relations'].shape == (0, 3)


def test_pipeline_packs_flipped_relations_and_scene(folder):
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadSceneGraphAnnotations'),
        dict(type='Resize', scale=(128, 96)),
        dict(type='RandomFlip', prob=1.0),
        dict(type='PackSceneGraphInputs'),
    ]
    dataset = build(folder, pipeline=pipeline)
    samples = {dataset[i]['data_samples'].img_id: dataset[i] for i in range(3)}
    assert samples[7]['inputs'].shape == (3, 96, 128)
    sample = samples[7]['data_samples']
    assert sample.gt_instances.labels.tolist() == [0, 2, 1]
    assert sample.gt_instances.bboxes.tensor[0].tolist() == [84, 4, 124, 44]
    assert sample.gt_relations.pairs.tolist() == [[1, 2], [0, 1], [0, 2], [0, 2]]
    assert sample.gt_relations.labels.tolist() == [2, 1, 1, 2]  # left of is now right of
    assert sample.gt_scene.label.tolist() == [1]
    assert 'gt_scene' not in samples[5]['data_samples']
    assert len(samples[3]['data_samples'].gt_relations) == 0


def test_invalid_boxes_stay_in_a_test_set(folder):
    """A public evaluator counts their relations."""
    info = by_id(build(folder, test_mode=True))[7]
    thin = next(i for i in info['instances'] if i['ann_id'] == 16)
    assert thin['bbox'] == [10, 10, 10.5, 19] and thin['ignore_flag'] == 0
    assert [16, 15] in info['relations'][:, :2].tolist()
    assert len(info['relations']) == len(CONTENT['relations'])


def test_dropped_relations_are_logged(folder, monkeypatch):
    messages = []
    monkeypatch.setattr(
        'gclip_mm.scene_graph.datasets.scene_graph_dataset.print_log',
        lambda message, logger: messages.append(message),
    )
    build(folder)
    assert len(messages) == 1
    assert '1 of 6 relations dropped' in messages[0]


def with_boxes(*boxes):
    content = copy.deepcopy(CONTENT)
    for annotation, box in zip(content['annotations'], boxes, strict=False):
        annotation['bbox'] = box
    return content


@pytest.mark.parametrize(
    ('content', 'expected'),
    [
        (CONTENT, None),
        # One pixel is tolerated, because tools count pixels differently.
        (with_boxes([-1, 0, 66, 49], [40, 30, 25, 19]), None),
        (with_boxes([40, 30, 30, 10]), '1 of 7 boxes exceed their image: check "width"'),
        (with_boxes([-2, 30, 20, 10]), '1 of 7 boxes exceed their image: check "width"'),
        # Read as [x1, y1, x2, y2], all boxes are valid and inside the image.
        (
            with_boxes(
                *[[40, 30, 60, 40], [2, 2, 20, 20], [30, 4, 64, 48], [8, 2, 20, 20]],
                *[[10, 10, 12, 19], [0, 0, 9, 9], [5, 5, 9, 9]],
            ),
            r'2 of 7 boxes exceed.* Read as \[x1, y1, x2, y2\] none would',
        ),
    ],
)
def test_boxes_outside_image_are_warned_about(folder, monkeypatch, content, expected):
    warned = []
    monkeypatch.setattr(
        'gclip_mm.scene_graph.datasets.scene_graph_dataset.print_log',
        lambda message, logger, level=None: level == logging.WARNING and warned.append(message),
    )
    build(folder, content)
    assert len(warned) == (expected is not None)
    assert expected is None or re.search(f'data.json: {expected}', warned[0])


def test_metainfo_selects_and_reorders_names(folder):
    metainfo = dict(classes=('table', 'cup'), predicates=('on', 'right of'), scenes=('yard',))
    dataset = build(folder, metainfo=metainfo)
    assert dataset.metainfo['classes'] == ('table', 'cup')
    info = by_id(dataset)[7]
    assert [(x['ann_id'], x['bbox_label']) for x in info['instances']] == [
        (11, 1),
        (15, 0),
        (17, 1),
    ]
    assert info['relations'].tolist() == [[11, 15, 0]]
    assert [by_id(dataset)[i]['scene_label'] for i in (7, 3, 5)] == [0, None, None]


def test_scenes_are_optional(folder):
    content = copy.deepcopy(CONTENT)
    del content['scenes']
    for image in content['images']:
        image.pop('scene', None)
    dataset = build(folder, content)
    assert dataset.metainfo['scenes'] == ()
    assert {info['scene_label'] for info in by_id(dataset).values()} == {None}


def test_filter_empty_relations_applies_to_training_only(folder):
    assert by_id(build(folder, filter_cfg=dict(filter_empty_gt=True))).keys() == {7, 3}
    with_relations = dict(filter_empty_relations=True)
    assert by_id(build(folder, filter_cfg=with_relations)).keys() == {7}
    assert len(build(folder, filter_cfg=with_relations, test_mode=True)) == 3
    with pytest.raises(ValueError, match="unknown key 'filter_empty'.*filter_empty_relations"):
        build(folder, filter_cfg=dict(filter_empty=True))


def test_dataset_can_be_pickled_and_subset(folder):
    dataset = build(folder)
    again = pickle.loads(pickle.dumps(dataset))
    assert again.get_data_info(1)['relations'].tolist() == (
        dataset.get_data_info(1)['relations'].tolist()
    )
    assert len(dataset.get_subset(2)) == 2
    assert len(build(folder, indices=1)) == 1
    assert dataset.get_cat_ids(0) is not None


def test_flip_without_listed_pairs_raises(folder):
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadSceneGraphAnnotations'),
        dict(type='RandomFlip', prob=1.0),
    ]
    dataset = build(folder, metainfo={}, pipeline=pipeline)
    with pytest.raises(ValueError, match="flip_predicate_pairs=\\[\\('left of', 'right of'\\)\\]"):
        dataset[0]


def edited(path, value):
    """CONTENT with one value replaced, or removed if ``value`` is ``...``."""
    content = copy.deepcopy(CONTENT)
    at = content
    for key in path[:-1]:
        at = at[key]
    if value is ...:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return content


@pytest.mark.parametrize(
    ('path', 'value', 'message'),
    [
        (['relations'], ..., "has no list 'relations'"),
        (['predicates'], {}, "has no list 'predicates'"),
        (['scenes'], 3, "has no list 'scenes'"),
        (['relations', 1, 'subject_id'], ..., r"relations\[1\] has no 'subject_id'"),
        (['relations', 1, 'subject_id'], 30, 'image 7 has no box with subject_id 30'),
        (['relations', 1, 'object_id'], 99, 'image 7 has no box with object_id 99'),
        (['relations', 1, 'object_id'], 12, 'joins a box with itself'),
        (['relations', 1, 'predicate_id'], 0, r'predicate_id 0 is not in "predicates"'),
        (['relations', 1, 'image_id'], 8, 'no image has the id 8'),
        (['images', 0, 'scene'], 0, r'image 7 has scene 0.*\[20, 10\]'),
        (['images', 0, 'id'], 3, 'two images have the id 3'),
        (['images', 0, 'width'], ..., r"images\[0\] has no 'width'"),
        (['annotations', 0, 'id'], 11, 'two annotations have the id 11'),
        (['annotations', 0, 'id'], '12', 'must be integers'),
        (['annotations', 0, 'area'], ..., r"annotations\[0\] has no 'area'"),
        (['annotations', 0, 'bbox'], [1, 2, 3], 'annotation 12 must be'),
        (['annotations', 0, 'bbox'], [1, 2, 3, float('nan')], r'annotation 12 must be .* nan\]'),
        (['annotations', 1, 'bbox'], [1, 2, float('inf'), 4], 'annotation 11 must be'),
        (['annotations', 0, 'bbox'], [1, 2, '3', 4], 'annotation 12 must be'),
        (['annotations', 0, 'bbox'], [1, 2, [3], 4], 'annotation 12 must be'),
        (['annotations', 0, 'bbox'], None, 'annotation 12 must be'),
        (['images', 0, 'width'], 0, 'image 7 must be numbers above 0'),
        (['images', 0, 'height'], '48', 'image 7 must be numbers above 0'),
        (['annotations', 0, 'category_id'], 1, 'category_id 1, which is not'),
        (['annotations', 0, 'image_id'], 1, 'annotation 12 belongs to image 1'),
        (['predicates', 1, 'id'], 1, "ids in 'predicates' are not unique"),
        (['categories', 1, 'name'], 'cup', "names in 'categories' are not unique"),
    ],
)
def test_bad_entry_raises_with_file_and_entry(folder, path, value, message):
    with pytest.raises(ValueError, match=message) as error:
        build(folder, edited(path, value))
    assert 'data.json' in str(error.value)


@pytest.mark.parametrize(
    ('metainfo', 'message'),
    [
        (dict(classes=('cup', 'cat')), "has no 'cat' in 'categories'"),
        (dict(classes=('cup', 'dog')), r"order \['dog', 'cup'\]"),
        (dict(predicates=('under',)), "has no 'under' in 'predicates'"),
        (dict(scenes=('beach',)), "has no 'beach' in 'scenes'"),
        (dict(flip_predicate_pairs=[('on', 'off')]), "'off', which is not a predicate"),
    ],
)
def test_metainfo_not_matching_file_raises(folder, metainfo, message):
    with pytest.raises(ValueError, match=message):
        build(folder, metainfo=metainfo)


def test_truncated_foreign_or_missing_file_raises(folder):
    text = json.dumps(CONTENT)
    for broken in (text[: len(text) // 2], '', 'not json'):
        (folder / 'broken.json').write_text(broken)
        with pytest.raises(ValueError, match=r'broken\.json is not valid JSON'):
            SceneGraphDataset(data_root=str(folder), ann_file='broken.json')
    (folder / 'list.json').write_text('[]')
    with pytest.raises(ValueError, match='must hold an object, not a list'):
        SceneGraphDataset(data_root=str(folder), ann_file='list.json')
    with pytest.raises(FileNotFoundError, match=r'missing\.json'):
        SceneGraphDataset(data_root=str(folder), ann_file='missing.json')


def test_statistics_count_relations_and_unrelated_pairs(folder):
    dataset = build(folder)
    overlapping = relation_statistics(dataset)
    dog, table, cup = range(3)
    left_of, _, on = range(3)
    expected = np.zeros((3, 3, 3), int)
    expected[cup, table, on] = 1
    expected[dog, cup, left_of] = expected[dog, table, left_of] = expected[dog, table, on] = 1
    np.testing.assert_array_equal(overlapping.relations, expected)
    # Image 7: cup and table overlap, table -> cup is not related. Image 3: both directions.
    unrelated = np.zeros((3, 3), int)
    unrelated[table, cup] = 2
    unrelated[cup, table] = 1
    np.testing.assert_array_equal(overlapping.unrelated, unrelated)
    everything = relation_statistics(dataset, only_overlapping=False)
    np.testing.assert_array_equal(everything.relations, expected)
    unrelated[cup, dog] = unrelated[table, dog] = 1
    np.testing.assert_array_equal(everything.unrelated, unrelated)
    assert overlapping.triplets() == {
        (cup, table, on),
        (dog, cup, left_of),
        (dog, table, left_of),
        (dog, table, on),
    }

    train = copy.deepcopy(CONTENT)
    del train['relations'][1:3]
    (folder / 'other').mkdir()
    seen = relation_statistics(build(folder, train))
    assert zero_shot_triplets(seen, overlapping) == {(dog, cup, left_of), (dog, table, left_of)}


def test_shape_scenes_relations_hold_before_and_after_flip(tmp_path):
    """The boxes satisfy the relations of ShapeScenes before and after a flip."""
    for flip in (0.0, 1.0):
        dataset = DATASETS.build(
            dict(
                type='ShapeScenesGraphDataset',
                data_root=str(tmp_path / 'shapes'),
                ann_file='annotations/train.json',
                params=dict(num_train=60, num_val=1),
                filter_cfg=dict(filter_empty_relations=True),
                pipeline=[
                    dict(type='LoadImageFromFile'),
                    dict(type='LoadSceneGraphAnnotations'),
                    dict(type='Resize', scale=(320, 256), keep_ratio=False),
                    dict(type='RandomFlip', prob=flip),
                    dict(type='PackSceneGraphInputs'),
                ],
            )
        )
        names = dataset.metainfo['predicates']
        signs = {'left of': [], 'right of': []}
        for i in range(len(dataset)):
            sample = dataset[i]['data_samples']
            assert len(sample.gt_relations)
            assert 0 <= int(sample.gt_scene.label) < 6
            x = sample.gt_instances.bboxes.centers[:, 0]
            for (s, o), p in zip(
                sample.gt_relations.pairs, sample.gt_relations.labels, strict=True
            ):
                if names[p] in signs:
                    signs[names[p]].append(float(x[s] - x[o]))
        assert len(signs['left of']) > 5 and len(signs['right of']) > 5
        assert max(signs['left of']) < 0 < min(signs['right of'])
