"""Runs the instructions for custom data in the README of configs/scene_graph."""

from __future__ import annotations

import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import DefaultScope, init_default_scope
from mmengine.runner import Runner

import gclip_mm  # noqa: F401

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / 'configs' / 'scene_graph' / 'README.md').read_text()


@pytest.fixture(autouse=True)
def own_scope():
    known = list(DefaultScope._instance_dict.items())
    yield
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(known)


def code(number: int) -> str:
    """A Python block of the README, without the indentation of its list."""
    blocks = re.findall(r'^   ```python\n(.*?)^   ```', README, re.DOTALL | re.MULTILINE)
    return re.sub(r'^   ', '', blocks[number], flags=re.MULTILINE)


def own_data(root: Path) -> None:
    """Write two splits of 4 pictures with 3 classes, 4 predicates, 2 scenes and sparse ids."""
    (root / 'images').mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split, first in (('train', 0), ('val', 4)):
        content = dict(
            images=[
                dict(id=i, file_name=f'{i}.jpg', width=160, height=128, scene=5 * (i % 2))
                for i in range(first, first + 4)
            ],
            categories=[dict(id=2 * i + 1, name=n) for i, n in enumerate(('cat', 'dog', 'mat'))],
            predicates=[
                dict(id=i, name=n) for i, n in enumerate(('left of', 'right of', 'on', 'near'))
            ],
            scenes=[dict(id=0, name='home'), dict(id=5, name='street')],
            annotations=[],
            relations=[],
        )
        for image in content['images']:
            name = str(root / 'images' / image['file_name'])
            cv2.imwrite(name, rng.integers(0, 255, (128, 160, 3), dtype=np.uint8))
            start = 10 * image['id']
            for k in range(3):
                x, y = rng.integers(0, 60, 2).tolist()
                content['annotations'].append(
                    dict(
                        id=start + k,
                        image_id=image['id'],
                        category_id=2 * k + 1,
                        bbox=[x, y, 50, 40],
                        area=2000,
                        iscrowd=0,
                    )
                )
            content['relations'].append(
                dict(image_id=image['id'], subject_id=start, object_id=start + 2, predicate_id=2)
            )
        (root / f'{split}.json').write_text(json.dumps(content))


def test_readme_steps_work_on_own_data(tmp_path, monkeypatch):
    own_data(tmp_path / 'data' / 'mine')
    text = code(0).replace('./configs', str(ROOT / 'configs'))
    (tmp_path / 'my_config.py').write_text(text)
    monkeypatch.chdir(tmp_path)
    cfg = Config.fromfile('my_config.py')
    cfg.work_dir = 'work_dirs/my_config'
    cfg.train_cfg.update(max_iters=2, val_interval=2)
    cfg.train_dataloader.batch_size = 2
    cfg.experiment_name = 'scene_graph_readme'
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert runner.message_hub.get_scalar('val/sg/R@20').current() >= 0

    (tmp_path / 'folder' / 'of').mkdir(parents=True)
    (tmp_path / 'data' / 'mine' / 'images').rename(tmp_path / 'folder' / 'of' / 'pictures')
    call = code(1).replace('iter_1600', 'iter_2').replace("['relations'][0]", "['relations']")
    results: dict = {}
    exec(call, results)
    predictions = results['result']['predictions']
    assert len(predictions) == 8
    assert {name for p in predictions for name in p['names']} <= {'cat', 'dog', 'mat'}
    assert {p['scene']['name'] for p in predictions} <= {'home', 'street'}
    assert len(list((tmp_path / 'out' / 'vis').iterdir())) == 8
    assert len(list((tmp_path / 'out' / 'preds').iterdir())) == 8


@pytest.mark.parametrize(
    ('head', 'detector', 'frozen'),
    [('RelationHead', 'RetinaNet', True), ('EGTRHead', 'DINO', False)],
)
def test_example_with_another_detector_builds(tmp_path, head, detector, frozen):
    (example,) = (
        block
        for block in re.findall(r'^```python\n(.*?)^```', README, re.DOTALL | re.MULTILINE)
        if 'SceneGraphDetector' in block and f"type='{head}'" in block
    )
    (tmp_path / 'wrapped.py').write_text(example)
    cfg = Config.fromfile(str(tmp_path / 'wrapped.py'))
    init_default_scope('mmdet')
    with torch.device('meta'):  # shapes only, without memory
        model = MODELS.build(cfg.model)
    assert type(model.detector).__name__ == detector
    assert type(model.relation_head).__name__ == head
    assert model.relation_head.num_classes == 80 and model.freeze_detector is frozen


def test_files_named_in_readme_exist():
    folder = ROOT / 'configs' / 'scene_graph'
    for link in re.findall(r'\]\(([^)#:]+)\)', README):
        assert (folder / link).exists(), link
    for path in re.findall(r'(?:configs|tools)/[\w/.-]+\.(?:py|sh)', README):
        assert (ROOT / path).is_file(), path
