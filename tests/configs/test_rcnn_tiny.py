"""The tiny R-CNN configs train from a proposal file and report mAP."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.runner import Runner

from gclip_mm.datasets.shape_scenes import ShapeScenesParams, generate
from tests.configs.tiny import CONFIGS


@pytest.fixture
def data_root(tmp_path):
    """Eight pictures with random boxes as proposals."""
    root = tmp_path / 'shapes'
    generate(root, ShapeScenesParams(num_train=6, num_val=2), progress=False)
    (root / 'proposals').mkdir()
    rng = np.random.default_rng(0)
    for split, count in (('train', 6), ('val', 2)):
        proposals = {}
        for i in range(count):
            corner, size = rng.uniform(0, 90, (40, 2)), rng.uniform(10, 38, (40, 2))
            boxes = np.concatenate([corner, corner + size], axis=1).astype(np.float32)
            proposals[f'{split}/{i:06d}.jpg'] = dict(bboxes=boxes, scores=np.ones(40, np.float32))
        path = root / 'proposals' / f'selective_search_{split}.pkl'
        path.write_bytes(pickle.dumps(proposals))
    return root


def test_tiny_rcnn_trains_from_proposal_file_and_reports_map(data_root, tmp_path):
    cfg = Config.fromfile(str(CONFIGS / 'rcnn' / 'rcnn_r18_tiny_shapescenes.py'))
    cfg.work_dir, cfg.log_level = str(tmp_path / 'work'), 'WARNING'
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.data_root = str(data_root)
        loader.dataset.params.update(num_train=6, num_val=2)
        loader.batch_size = 2
    cfg.val_evaluator.ann_file = str(data_root / 'annotations' / 'val.json')
    cfg.test_evaluator = cfg.val_evaluator
    cfg.train_cfg.update(max_iters=3, val_interval=3)
    # The cosine begins after the last iteration.
    del cfg.param_scheduler[1:]
    runner = Runner.from_cfg(cfg)
    before = runner.model.backbone.conv1.weight.clone()
    runner.train()
    assert not before.equal(runner.model.backbone.conv1.weight)
    scalars = runner.message_hub.log_scalars
    assert np.isfinite(scalars['train/loss'].data[0]).all()
    assert scalars['train/grad_norm'].data[0][-1] > 0
    assert 0 <= scalars['val/coco/bbox_mAP'].current() <= 1


@pytest.mark.parametrize('name', ['rcnn_r18_tiny_bccd', 'rcnn_r18_tiny_shapescenes'])
def test_num_classes_matches_the_dataset(name):
    cfg = Config.fromfile(str(CONFIGS / 'rcnn' / f'{name}.py'))
    expected = {'BCCDDataset': 3, 'ShapeScenesDataset': 10}
    dataset = cfg.train_dataloader.dataset
    assert cfg.model.roi_head.bbox_head.num_classes == expected[dataset.type]
    assert dataset.proposal_file and cfg.val_dataloader.dataset.proposal_file
