"""Relations stay true under random compositions of MMDetection's transforms.

The expected relations do not depend on the implementation under test. A box is identified by its
class label, which is unique in these images and which the transforms index themselves. The
orientation of the image is read from its pixels: red increases to the right, green downwards.
"""

import copy

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from mmcv.transforms import Compose
from mmdet.registry import TRANSFORMS
from mmdet.structures.bbox import HorizontalBoxes
from mmengine.registry import DefaultScope

import gclip_mm.scene_graph  # noqa: F401
from gclip_mm.scene_graph.transforms import (
    LoadSceneGraphAnnotations,
    PackSceneGraphInputs,
    PredicateFlips,
    SamplePredicatePerPair,
    SceneGraphBoxes,
)

METAINFO = dict(
    predicates=('left of', 'right of', 'above', 'below', 'touches'),
    flip_predicate_pairs=[('left of', 'right of')],
    vertical_flip_predicate_pairs=[('above', 'below')],
)
HORIZONTAL = {0: 1, 1: 0}
VERTICAL = {2: 3, 3: 2}
HEIGHT, WIDTH = 96, 128


@pytest.fixture(autouse=True, scope='module')
def mmdet_scope():
    with DefaultScope.overwrite_default_scope('mmdet'):
        yield


def build(name, **kwargs):
    return TRANSFORMS.build(dict(type=name, **kwargs))


def make_image(rng, first_label=0, num_boxes=None, metainfo=METAINFO):
    """Results in the format of the data set, and the true relations by label."""
    num_boxes = int(rng.integers(0, 12)) if num_boxes is None else num_boxes
    img = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    img[..., 2] = np.linspace(40, 250, WIDTH)[None, :]
    img[..., 1] = np.linspace(40, 250, HEIGHT)[:, None]
    instances, ann_ids = [], rng.permutation(1000)[:num_boxes]
    for i in range(num_boxes):
        x, y = rng.uniform(0, WIDTH - 24), rng.uniform(0, HEIGHT - 24)
        w, h = rng.uniform(4, 60), rng.uniform(4, 60)
        instances.append(
            dict(
                bbox=[x, y, min(x + w, WIDTH), min(y + h, HEIGHT)],
                bbox_label=first_label + i,
                ignore_flag=int(rng.random() < 0.15),
                ann_id=int(ann_ids[i]),
            )
        )
    relations = []
    for _ in range(int(rng.integers(0, 25)) if num_boxes > 1 else 0):
        s, o = rng.choice(num_boxes, 2, replace=False)
        relations.append((s, o, int(rng.integers(0, 5))))
    results = dict(
        img=img,
        img_shape=(HEIGHT, WIDTH),
        ori_shape=(HEIGHT, WIDTH),
        img_id=0,
        img_path='none',
        instances=instances,
        relations=np.array([(ann_ids[s], ann_ids[o], p) for s, o, p in relations], int),
        scene_label=3,
        predicate_flips=PredicateFlips.from_metainfo(metainfo),
    )
    truth = sorted((first_label + int(s), first_label + int(o), p) for s, o, p in relations)
    return results, truth


def mirrored(img):
    """(horizontal, vertical): whether the gradients are reversed. None if undetermined."""
    inside = img.min(axis=2) < 20  # blue is 0 in the image; padding is grey
    inside &= img[..., 1:].min(axis=2) > 30
    answer = []
    for channel, axis in ((2, 1), (1, 0)):
        position, value = np.nonzero(inside)[axis], img[..., channel][inside].astype(float)
        if len(value) < 20 or np.ptp(value) < 12 or np.ptp(position) < 4:
            return None
        answer.append(np.corrcoef(position, value)[0, 1] < 0)
    return tuple(answer)


def turn(predicate, flips):
    for is_flipped, table in zip(flips, (HORIZONTAL, VERTICAL), strict=True):
        predicate = table.get(predicate, predicate) if is_flipped else predicate
    return predicate


def found(data_sample):
    """Packed relations, by label."""
    labels = data_sample.gt_instances.labels
    pairs, predicates = data_sample.gt_relations.pairs, data_sample.gt_relations.labels
    assert pairs.dtype == predicates.dtype == torch.int64
    assert pairs.shape == (len(predicates), 2)
    return sorted(
        (int(labels[s]), int(labels[o]), int(p))
        for (s, o), p in zip(pairs, predicates, strict=True)
    )


class Reorder:
    """A custom transform: any selection of the boxes in any order, with repetition."""

    def __init__(self, seed, repeat):
        self.seed, self.repeat = seed, repeat

    def __call__(self, results):
        rng = np.random.default_rng(self.seed)
        n = len(results['gt_bboxes'])
        size = int(rng.integers(0, n + 1 + 2 * self.repeat)) if n else 0
        index = rng.choice(n, size, replace=True) if self.repeat else rng.permutation(n)[:size]
        if n:
            for key in ('gt_bboxes', 'gt_bboxes_labels', 'gt_ignore_flags'):
                results[key] = results[key][index]
        return results


seeds = st.integers(0, 2**16)
FLIP = st.builds(
    lambda direction: build('RandomFlip', prob=1.0, direction=direction),
    st.sampled_from(['horizontal', 'vertical', 'diagonal']),
)
TRANSFORM = st.one_of(
    FLIP,
    st.builds(
        lambda scale, keep: build('Resize', scale=scale, keep_ratio=keep),
        st.sampled_from([(96, 80), (200, 100), (150, 160)]),
        st.booleans(),
    ),
    st.builds(
        lambda size, clip: build(
            'RandomCrop', crop_size=size, allow_negative_crop=True, bbox_clip_border=clip
        ),
        st.sampled_from([(50, 50), (90, 40), (100, 90)]),
        st.booleans(),
    ),
    st.builds(lambda: build('MinIoURandomCrop', min_ious=(0.1, 0.3), min_crop_size=0.3)),
    st.builds(lambda: build('Expand', mean=(127, 127, 127), ratio_range=(1, 2), prob=1.0)),
    st.builds(lambda: build('RandomShift', prob=1.0, max_shift_px=20)),
    st.builds(
        lambda: build('RandomAffine', max_rotate_degree=15, border_val=(127, 127, 127)),
    ),
    st.builds(
        lambda name, level: build(name, prob=1.0, level=level, img_border_value=127),
        st.sampled_from(['Rotate', 'TranslateX', 'TranslateY', 'ShearX', 'ShearY']),
        st.sampled_from([2, 6]),
    ),
    st.builds(lambda: build('Pad', size_divisor=32, pad_val=dict(img=(127, 127, 127)))),
    st.builds(
        lambda side: build('FilterAnnotations', min_gt_bbox_wh=(side, side), keep_empty=False),
        st.sampled_from([5, 20]),
    ),
    st.builds(Reorder, seeds, st.just(False)),
    FLIP,
)


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=seeds, transforms=st.lists(TRANSFORM, max_size=6))
def test_relations_stay_true_under_random_compositions(seed, transforms):
    rng = np.random.default_rng(seed)
    results, truth = make_image(rng)
    np.random.seed(seed)
    pipeline = [LoadSceneGraphAnnotations(), *transforms]
    results = Compose(pipeline)(results)
    assume(results is not None)  # the transforms skip an image without boxes
    img = results['img']
    sample = PackSceneGraphInputs()(results)['data_samples']
    labels = sample.gt_instances.labels.tolist()
    assert len(set(labels)) == len(labels)
    assert sample.gt_scene.label.tolist() == [3]
    expected = [(s, o, p) for s, o, p in truth if s in labels and o in labels]
    flips = mirrored(img)
    if flips is None:  # the crop is too small to determine the orientation: ignore the direction
        flips = next(
            (
                f
                for f in ((a, b) for a in (False, True) for b in (False, True))
                if sorted((s, o, turn(p, f)) for s, o, p in expected) == found(sample)
            ),
            (False, False),
        )
    assert found(sample) == sorted((s, o, turn(p, flips)) for s, o, p in expected)


@pytest.mark.parametrize('seed', range(5))
def test_relations_stay_true_under_center_crop_pad(seed):
    # Tested separately, because it does not terminate without a large box.
    results, truth = make_image(np.random.default_rng(seed), num_boxes=7)
    results['img'] = results['img'].astype(np.float32)
    np.random.seed(seed)
    crop = build(
        'RandomCenterCropPad',
        crop_size=(70, 70),
        ratios=(0.9, 1.1),
        border=16,
        mean=[127, 127, 127],
        std=[1, 1, 1],
        to_rgb=False,
        test_pad_mode=None,
    )
    results = crop(LoadSceneGraphAnnotations()(results))
    sample = PackSceneGraphInputs()(results)['data_samples']
    labels = sample.gt_instances.labels.tolist()
    assert found(sample) == [t for t in truth if t[0] in labels and t[1] in labels]


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=seeds)
def test_copied_box_keeps_relations(seed):
    results, truth = make_image(np.random.default_rng(seed), num_boxes=5)
    for instance in results['instances']:
        instance['ignore_flag'] = 0
    results = Reorder(seed, True)(LoadSceneGraphAnnotations()(results))
    sample = PackSceneGraphInputs()(results)['data_samples']
    labels = sample.gt_instances.labels.tolist()
    expected = [t for t in truth for _ in range(labels.count(t[0]) * labels.count(t[1]))]
    assert found(sample) == sorted(expected)


def test_relations_of_ignored_boxes_are_dropped():
    results, _ = make_image(np.random.default_rng(0), num_boxes=3)
    ids = [i['ann_id'] for i in results['instances']]
    results['relations'] = np.array([[ids[0], ids[1], 0], [ids[0], ids[2], 1], [ids[2], ids[0], 4]])
    for i, instance in enumerate(results['instances']):
        instance['ignore_flag'] = int(i == 1)
    sample = PackSceneGraphInputs()(LoadSceneGraphAnnotations()(results))['data_samples']
    assert sample.gt_instances.labels.tolist() == [0, 2]
    assert len(sample.ignored_instances) == 1
    assert sample.gt_relations.pairs.tolist() == [[0, 1], [1, 0]]
    assert sample.gt_relations.labels.tolist() == [1, 4]
    assert type(sample.gt_instances.bboxes) is HorizontalBoxes


def test_empty_or_missing_annotations_are_packed():
    results, _ = make_image(np.random.default_rng(0), num_boxes=0)
    results['scene_label'] = None
    pipeline = [LoadSceneGraphAnnotations(), build('RandomFlip', prob=1.0), PackSceneGraphInputs()]
    sample = Compose(pipeline)(results)['data_samples']
    assert sample.gt_relations.pairs.shape == (0, 2)
    assert sample.gt_relations.labels.shape == (0,)
    assert 'gt_scene' not in sample
    # Inference has no annotations to load.
    image_only = dict(img=np.zeros((4, 4, 3), np.uint8), img_shape=(4, 4))
    assert 'gt_relations' not in PackSceneGraphInputs()(image_only)['data_samples']


def mix(name, results, others, **kwargs):
    results = {**results, 'mix_results': others}
    return build(name, **kwargs)(results)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=seeds)
def test_mosaic_merges_relations_of_its_images(seed):
    rng = np.random.default_rng(seed)
    np.random.seed(seed)
    images, truth = [], []
    for i in range(4):
        results, relations = make_image(rng, first_label=100 * i)
        # Different images may have equal annotation ids.
        flip = build('RandomFlip', prob=float(i % 2))
        images.append(flip(LoadSceneGraphAnnotations()(results)))
        truth += [(s, o, turn(p, (i % 2 == 1, False))) for s, o, p in relations]
    mixed = mix('Mosaic', images[0], images[1:], img_scale=(WIDTH, HEIGHT), prob=1.0)
    sample = PackSceneGraphInputs()(mixed)['data_samples']
    labels = sample.gt_instances.labels.tolist()
    assert found(sample) == sorted(t for t in truth if t[0] in labels and t[1] in labels)
    assert sample.gt_scene.label.tolist() == [3]


def test_mosaic_of_image_with_itself_keeps_copies_separate():
    results, _ = make_image(np.random.default_rng(1), num_boxes=2)
    for instance, x in zip(results['instances'], (10, 60), strict=True):
        instance.update(bbox=[x, 30, x + 20, 60], ignore_flag=0)
    ids = [i['ann_id'] for i in results['instances']]
    results['relations'] = np.array([[ids[0], ids[1], 0]])
    loaded = LoadSceneGraphAnnotations()(results)
    copies = [copy.deepcopy(loaded) for _ in range(3)]
    mixed = mix(
        'Mosaic', loaded, copies, img_scale=(WIDTH, HEIGHT), center_ratio_range=(1, 1), prob=1.0
    )
    sample = PackSceneGraphInputs()(mixed)['data_samples']
    assert len(sample.gt_instances) == 8
    boxes = sample.gt_instances.bboxes.tensor
    pairs = sample.gt_relations.pairs
    assert len(pairs) == 4  # not 16
    # Within one tile, boxes are 50 pixels apart.
    np.testing.assert_allclose(boxes[pairs[:, 1], 0] - boxes[pairs[:, 0], 0], 50)
    np.testing.assert_allclose(boxes[pairs[:, 1], 1], boxes[pairs[:, 0], 1])


def test_mixing_different_scenes_drops_scene_label():
    rng = np.random.default_rng(0)
    images = [make_image(rng, 100 * i, num_boxes=4)[0] for i in range(4)]
    images[2]['scene_label'] = 1
    images = [LoadSceneGraphAnnotations()(r) for r in images]
    mixed = mix('Mosaic', images[0], images[1:], img_scale=(WIDTH, HEIGHT), prob=1.0)
    assert 'gt_scene' not in PackSceneGraphInputs()(mixed)['data_samples']


@pytest.mark.parametrize('name', ['MixUp', 'CachedMixUp'])
@pytest.mark.parametrize('flip', [False, True])
def test_mixup_flips_relations_of_other_image_only(name, flip):
    """MixUp mirrors the other image without recording it in the results."""
    rng = np.random.default_rng(3)
    np.random.seed(3)
    main, truth = make_image(rng, 0, num_boxes=5)
    other, other_truth = make_image(rng, 100, num_boxes=8)
    for instance in (*main['instances'], *other['instances']):
        instance['ignore_flag'] = 0
    main, other = LoadSceneGraphAnnotations()(main), LoadSceneGraphAnnotations()(other)
    # MMDetection flips if a random number is above flip_ratio.
    options = dict(img_scale=(WIDTH, HEIGHT), ratio_range=(1, 1), flip_ratio=float(not flip))
    if name == 'MixUp':
        mixed = mix(name, main, [other], **options)
    else:
        transform = build(name, prob=1.0, **options)
        transform.results_cache = [copy.deepcopy(other) for _ in range(10)]
        transform.get_indexes = lambda cache: 0
        mixed = transform(main)
    sample = PackSceneGraphInputs()(mixed)['data_samples']
    labels = sample.gt_instances.labels.tolist()
    expected = truth + [(s, o, turn(p, (flip, False))) for s, o, p in other_truth]
    expected = [t for t in expected if t[0] in labels and t[1] in labels]
    assert any(t[0] >= 100 and t[2] < 2 for t in expected)
    assert any(t[0] < 100 for t in expected)
    assert found(sample) == sorted(expected)


def test_flipping_twice_is_identity():
    results, truth = make_image(np.random.default_rng(5), num_boxes=6)
    for instance in results['instances']:
        instance['ignore_flag'] = 0
    flip = build('RandomFlip', prob=1.0, direction='diagonal')
    pipeline = [LoadSceneGraphAnnotations(), flip, flip, PackSceneGraphInputs()]
    assert found(Compose(pipeline)(results)['data_samples']) == truth


def test_mirroring_matrix_swaps_predicates():
    results, _ = make_image(np.random.default_rng(5), num_boxes=2)
    ids = [i['ann_id'] for i in results['instances']]
    results['relations'] = np.array([[ids[0], ids[1], 0], [ids[0], ids[1], 2]])
    boxes = LoadSceneGraphAnnotations()(results)['gt_bboxes']
    for matrix, expected in (
        ([[-1, 0.2, 128], [0, 1, 0], [0, 0, 1]], [1, 2]),
        ([[1, 0, 0], [0, -1, 96], [0, 0, 1]], [0, 3]),
        ([[-2, 0, 0], [0, -2, 0], [0, 0, -2]], [0, 2]),
    ):
        moved = boxes.clone()
        moved.project_(np.array(matrix, np.float32))
        assert moved.graph.triplets[:, 2].tolist() == expected
    quarter_turn = torch.tensor([[0.0, 1, 0], [-1, 0, 128], [0, 0, 1]])
    with pytest.raises(ValueError, match='more than 45 degrees'):
        boxes.project_(quarter_turn)
    results['relations'] = np.array([[ids[0], ids[1], 4]])
    LoadSceneGraphAnnotations()(results)['gt_bboxes'].project_(quarter_turn)


def loaded(num_boxes=4, **kwargs):
    results, _ = make_image(np.random.default_rng(2), num_boxes=num_boxes)
    return LoadSceneGraphAnnotations(**kwargs)(results)


def test_transforms_that_lose_relations_raise():
    erased = build('RandomErasing', n_patches=1, ratio=0.1)(loaded())
    with pytest.raises(RuntimeError, match='relations of an image are lost.*RandomErasing'):
        PackSceneGraphInputs()(erased)

    copy_paste = build('CopyPaste', paste_by_box=True)
    copy_paste._get_selected_inds = lambda num_boxes: np.arange(1)
    with pytest.raises(RuntimeError, match='CopyPaste'):
        copy_paste({**loaded(), 'mix_results': [loaded()]})

    results = loaded()
    results['gt_bboxes_labels'] = results['gt_bboxes_labels'][1:]
    with pytest.raises(RuntimeError, match='4 boxes, 4 box ids and 3 labels'):
        PackSceneGraphInputs()(results)

    stock = build('LoadAnnotations')(make_image(np.random.default_rng(2), num_boxes=3)[0])
    with pytest.raises(RuntimeError, match='LoadSceneGraphAnnotations'):
        PackSceneGraphInputs()(stock)
    with pytest.raises(RuntimeError, match='LoadSceneGraphAnnotations before it'):
        SamplePredicatePerPair()(stock)
    with pytest.raises(NotImplementedError, match='cannot be overwritten'):
        loaded()['gt_bboxes'][0] = loaded()['gt_bboxes'][1]


def test_recomputed_boxes_raise():
    results, _ = make_image(np.random.default_rng(2), num_boxes=3)
    for instance in results['instances']:
        x1, y1, x2, y2 = instance['bbox']
        instance['mask'] = [[x1, y1, x2, y1, x2, y2, x1, y2]]
    results = LoadSceneGraphAnnotations(with_mask=True)(results)
    crop = build('RandomCrop', crop_size=(120, 90), recompute_bbox=True, allow_negative_crop=True)
    with pytest.raises(RuntimeError, match='recompute_bbox'):
        PackSceneGraphInputs()(crop(results))


def test_loading_raises_for_unsupported_use():
    with pytest.raises(ValueError, match='with_bbox=True'):
        LoadSceneGraphAnnotations(with_bbox=False)
    with pytest.raises(ValueError, match="box_type='hbox'"):
        LoadSceneGraphAnnotations(box_type=None)
    results, _ = make_image(np.random.default_rng(2), num_boxes=3)
    with pytest.raises(RuntimeError, match='must come before.*scale_factor'):
        LoadSceneGraphAnnotations()({**results, 'scale_factor': (1, 1)})
    with pytest.raises(RuntimeError, match='use it with SceneGraphDataset'):
        LoadSceneGraphAnnotations()({k: v for k, v in results.items() if k != 'relations'})
    del results['instances'][1]['ann_id']
    with pytest.raises(RuntimeError, match='InstaBoost'):
        LoadSceneGraphAnnotations()(results)


def test_sample_predicate_per_pair_keeps_one_relation():
    results, _ = make_image(np.random.default_rng(2), num_boxes=3)
    a, b, c = (i['ann_id'] for i in results['instances'])
    results['relations'] = np.array([[a, b, 0], [a, b, 2], [a, b, 2], [b, a, 1], [b, c, 4]])
    np.random.seed(0)
    drawn = []
    for _ in range(400):
        graph = SamplePredicatePerPair()(LoadSceneGraphAnnotations()(copy.deepcopy(results)))[
            'gt_bboxes'
        ].graph
        rows = {tuple(r[:2]): int(r[2]) for r in graph.triplets}
        assert len(rows) == len(graph.triplets) == 3
        assert (rows[b, a], rows[b, c]) == (1, 4)
        drawn.append(rows[a, b])
    assert set(drawn) == {0, 2}
    assert 0.55 < np.mean(np.array(drawn) == 2) < 0.78  # 2/3, drawn as often as annotated


def test_scene_graph_boxes_behave_like_horizontal_boxes():
    boxes = loaded()['gt_bboxes']
    assert isinstance(boxes, HorizontalBoxes)
    assert boxes[1:3].graph.ids.tolist() == boxes.graph.ids[1:3].tolist()
    assert boxes[torch.tensor([True, False, False, True])].graph.ids.tolist() == [
        boxes.graph.ids[0],
        boxes.graph.ids[3],
    ]
    assert boxes[2].graph.ids.tolist() == [boxes.graph.ids[2]]
    assert boxes.to(torch.float64).graph is boxes.graph
    assert boxes.detach().cpu().graph is boxes.graph
    assert boxes[None].graph is None  # no longer a list of boxes
    assert type(boxes.convert_to('hbox')) is HorizontalBoxes
    iou = boxes.overlaps(boxes, boxes)
    np.testing.assert_allclose(iou.diagonal(), 1, rtol=1e-5)
    empty = SceneGraphBoxes.cat([HorizontalBoxes(torch.zeros(0, 4)), boxes])
    assert len(empty.graph.triplets) <= len(boxes.graph.triplets)
    assert len(empty) == 4
