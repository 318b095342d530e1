"""ShapeScenesDataset in MMDetection."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip('mmdet')

from mmdet.registry import DATASETS
from mmdet.utils import register_all_modules

import gclip_mm.datasets  # noqa: F401  registers the class
from gclip_mm.datasets.shape_scenes import CLASSES, PREDICATES, SCENES, ShapeScenesParams, generate

PARAMS = dict(num_train=3, num_val=2, image_size=(96, 80), seed=1)


@pytest.fixture(scope='module', autouse=True)
def _registered():
    register_all_modules()


def build(root, split='train', **kwargs):
    args = dict(ann_file=f'annotations/{split}.json', params=PARAMS, pipeline=[], **kwargs)
    return DATASETS.build(dict(type='ShapeScenesDataset', data_root=str(root), **args))


def test_first_use_draws_with_progress_and_second_use_reuses(tmp_path, capsys):
    train = build(tmp_path / 'data' / 'new')
    assert 'Drawing ShapeScenes train' in capsys.readouterr().err
    val = build(tmp_path / 'data' / 'new', 'val', test_mode=True)
    assert 'Drawing' not in capsys.readouterr().err
    assert (len(train), len(val)) == (3, 2)


def test_lazy_init_draws_nothing(tmp_path):
    build(tmp_path / 'new', lazy_init=True)
    assert not list(tmp_path.iterdir())


def test_metainfo_has_all_names(tmp_path):
    meta = build(tmp_path / 'new').metainfo
    assert tuple(meta['classes']) == CLASSES
    assert tuple(meta['predicates']) == PREDICATES
    assert tuple(meta['scenes']) == SCENES
    assert ('left of', 'right of') in [tuple(pair) for pair in meta['flip_predicate_pairs']]


def test_boxes_masks_and_labels_reach_the_pipeline(small_root):
    args = dict(num_train=60, num_val=6, seed=3)
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
        dict(type='PackDetInputs'),
    ]
    dataset = DATASETS.build(
        dict(type='ShapeScenesDataset', data_root=str(small_root), params=args, pipeline=pipeline)
    )
    for item in (dataset[k] for k in range(10)):
        assert item['inputs'].shape == (3, 128, 160)
        gt = item['data_samples'].gt_instances
        assert len(gt) >= 2
        assert int(gt.labels.max()) < len(CLASSES)
        for box, mask in zip(gt.bboxes.tensor.numpy(), gt.masks.masks, strict=True):
            ys, xs = np.nonzero(mask)
            assert box.tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


def test_unknown_parameter_raises_with_its_name(tmp_path):
    with pytest.raises(ValueError, match="unknown key 'num_trian' in params.*num_train"):
        DATASETS.build(
            dict(type='ShapeScenesDataset', data_root=str(tmp_path), params=dict(num_trian=3))
        )


def test_other_parameters_at_data_root_raise(tmp_path):
    generate(tmp_path / 'a', ShapeScenesParams(**PARAMS), progress=False)
    with pytest.raises(FileExistsError, match=r'num_train=3 \(requested: 4\)'):
        DATASETS.build(
            dict(
                type='ShapeScenesDataset',
                data_root=str(tmp_path / 'a'),
                params=dict(PARAMS, num_train=4),
            )
        )
