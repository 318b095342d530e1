"""The tiny BCCD detectors train on photos and report mAP, with and without clipping."""

from __future__ import annotations

import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.runner import Runner

from gclip_mm import apply_clip
from gclip_mm.datasets.bccd_dataset import BCCDDataset
from tests.configs.tiny import CONFIGS

DETECTORS = ['rcnn', 'fast-rcnn', 'faster-rcnn_p3', 'ssd', 'yolox', 'dino']
CLIPS = dict(
    none=None,
    value='type=ValueClip,clip_value=0.01',
    norm='type=NormClip,max_norm=1.0',
    agc='type=AGC,clip_factor=0.02',
)
CASES = [(detector, list(CLIPS)[index % len(CLIPS)]) for index, detector in enumerate(DETECTORS, 1)]


def path_of(detector: str) -> Path:
    return CONFIGS / 'bccd' / f'{detector}_tiny_bccd.py'


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    """Six pictures of discs in BCCD's layout, with proposals near the truth and random ones."""
    root = tmp_path_factory.mktemp('data')
    bccd = root / 'BCCD'
    for folder in ('JPEGImages', 'Annotations', 'ImageSets/Main'):
        (bccd / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    names = [f'disc_{i}' for i in range(6)]
    proposals = {}
    for name in names:
        image = np.full((480, 640, 3), 220, np.uint8)
        boxes, objects = [], []
        for label, radius in enumerate((50, 90, 20)):
            x, y = rng.integers(radius, 640 - radius), rng.integers(radius, 480 - radius)
            cv2.circle(image, (int(x), int(y)), radius, (200 - 90 * label, 60, 90 * label), -1)
            boxes.append((x - radius, y - radius, x + radius, y + radius))
            corners = ''.join(
                f'<{key}>{value}</{key}>'
                for key, value in zip(('xmin', 'ymin', 'xmax', 'ymax'), boxes[-1], strict=True)
            )
            objects.append(
                f'<object><name>{BCCDDataset.METAINFO["classes"][label]}</name>'
                f'<difficult>0</difficult><bndbox>{corners}</bndbox></object>'
            )
        cv2.imwrite(str(bccd / 'JPEGImages' / f'{name}.jpg'), image)
        (bccd / 'Annotations' / f'{name}.xml').write_text(
            '<annotation><size><width>640</width><height>480</height><depth>3</depth></size>'
            + ''.join(objects)
            + '</annotation>'
        )
        near = np.repeat(np.array(boxes, np.float32), 4, axis=0)
        near += rng.normal(0, 3, near.shape).astype(np.float32)
        far = rng.uniform(0, 400, (20, 2)).astype(np.float32)
        found = np.concatenate([near, np.concatenate([far, far + 60], axis=1)]).clip(0, 479)
        proposals[f'JPEGImages/{name}.jpg'] = dict(
            bboxes=found, scores=np.linspace(1, 0.1, len(found), dtype=np.float32)
        )
    (root / 'proposals').mkdir()
    for split, part in (('train', names[:4]), ('val', names[4:])):
        (bccd / 'ImageSets' / 'Main' / f'{split}.txt').write_text('\n'.join(part))
        # MMDetection needs a file with exactly the images of the split.
        of_split = {key: proposals[key] for key in (f'JPEGImages/{name}.jpg' for name in part)}
        path = root / 'proposals' / f'bccd_felzenszwalb_{split}.pkl'
        path.write_bytes(pickle.dumps(of_split))
    return root


def small_run(detector: str, root: Path, work_dir: Path) -> Config:
    cfg = Config.fromfile(str(path_of(detector)))
    cfg.work_dir, cfg.log_level = str(work_dir), 'WARNING'
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        dataset = loader.dataset
        dataset.data_root = str(root if dataset.get('proposal_file') else root / 'BCCD')
        loader.batch_size = 2
    cfg.train_cfg.update(max_iters=2, val_interval=2)
    # The cosine begins after the last iteration.
    del cfg.param_scheduler[1:]
    if 'score_thr' in cfg.model.test_cfg:
        cfg.model.test_cfg.score_thr = 0.0  # after two steps few scores are high
    return cfg


@pytest.mark.parametrize('detector', DETECTORS)
def test_bccd_config_has_stock_wrapper_without_clipping(detector):
    """``--clip`` sets the rule, so the config must not have one."""
    wrapper = Config.fromfile(str(path_of(detector))).optim_wrapper
    assert wrapper.type == 'OptimWrapper' and not wrapper.get('clip_grad')


@pytest.mark.parametrize(('detector', 'clip'), CASES)
def test_detector_trains_and_reports_finite_map(detector, clip, photos, tmp_path):
    cfg = small_run(detector, photos, tmp_path)
    optimizer = dict(cfg.optim_wrapper.optimizer)
    if CLIPS[clip]:
        cfg = apply_clip(cfg, CLIPS[clip])
        assert dict(cfg.optim_wrapper.optimizer) == optimizer
    runner = Runner.from_cfg(cfg)
    before = {name: weight.detach().clone() for name, weight in runner.model.named_parameters()}
    runner.train()
    after = dict(runner.model.named_parameters())
    # The first step of the warm-up is small, but it changes every part that has a gradient.
    changed = [name for name, weight in before.items() if not weight.equal(after[name])]
    assert len(changed) > 0.5 * len(before)
    scalars = runner.message_hub.log_scalars
    assert np.isfinite(scalars['train/loss'].data[0]).all()
    assert ('train/clip_coef' in scalars) == bool(CLIPS[clip])
    assert -1 <= scalars['val/coco/bbox_mAP'].current() <= 1
