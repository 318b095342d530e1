"""Follows configs/scene_graph/photos/README.md from the spreadsheet to the exported model."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.registry import DefaultScope

from gclip_mm.cli import main

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / 'configs/scene_graph/photos/README.md').read_text()
MIGRATION = (ROOT / 'docs/scene_graphs_from_elsewhere.md').read_text()
#: A training of two iterations in place of 400.
SHORT = [
    'train_cfg.max_iters=2',
    'train_cfg.val_interval=2',
    'default_hooks.checkpoint.interval=2',
    'train_dataloader.batch_size=2',
]


@pytest.fixture(autouse=True)
def own_scope():
    known = list(DefaultScope._instance_dict.items())
    yield
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(known)


def blocks(kind, text=README):
    return re.findall(rf'^```{kind}\n(.*?)^```', text, re.DOTALL | re.MULTILINE)


def commands():
    lines = '\n'.join(blocks('bash')).replace('\\\n', ' ').splitlines()
    return {tuple(words[1:3]): words[1:] for line in lines if (words := shlex.split(line))}


def test_the_readme_works_from_the_spreadsheet_to_the_exported_model(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'configs').symlink_to(ROOT / 'configs')
    table, (writing, config, inference, onnx) = blocks('csv')[0], blocks('python')
    images = tmp_path / 'data/mine/images'
    images.mkdir(parents=True)
    (tmp_path / 'relations.csv').write_text(table)
    rng = np.random.default_rng(0)
    for name in {line.split(',')[0] for line in table.splitlines()[1:]}:
        cv2.imwrite(str(images / name), rng.integers(0, 255, (480, 640, 3), dtype=np.uint8))
    known = commands()

    assert main(known['convert', 'table']) == 0
    printed = capsys.readouterr().out
    for number in re.findall(r'num_\w+=\d+', config):  # the config has what is printed
        assert number in printed
    assert main(known['relations', 'data/mine/train.json']) == 0
    assert len(list((tmp_path / 'browse').glob('*.png'))) == 2

    exec(compile(writing, 'README.md', 'exec'), {})
    assert json.loads((tmp_path / 'data/written/train.json').read_text())['relations']

    (tmp_path / 'my_photos.py').write_text(config)
    assert main([*known['train', 'my_photos.py'], '--cfg-options', *SHORT]) == 0
    work_dir = tmp_path / 'work_dirs/my_photos'
    best = next(work_dir.glob('best_sg_mR@20_iter_*.pth'))
    test = known['test', 'my_photos.py']
    test = [str(best) if word.endswith('.pth') else word for word in test]
    monkeypatch.delenv('LOCAL_RANK', raising=False)
    capsys.readouterr()
    assert main(test) == 0
    assert '| sits on' in capsys.readouterr().out.replace('\x1b', '')
    assert len(list(work_dir.glob('*/pictures/*'))) == 1

    shutil.copy(work_dir / 'iter_2.pth', work_dir / 'iter_400.pth')
    names: dict = {}
    exec(compile(inference, 'README.md', 'exec'), names)
    assert names['graph']['relations'][0]['predicate'] in ('left of', 'right of', 'sits on')
    assert list((tmp_path / 'out/vis').iterdir())
    if find_spec('onnxruntime') and find_spec('onnx'):
        assert main(known['export-onnx', 'my_photos.py']) == 0
        exec(compile(onnx, 'README.md', 'exec'), names := {})
        assert names['graph']['rel_scores'].shape == (2, 3)


def test_the_pipeline_of_the_page_on_other_code_builds():
    from mmdet.registry import METRICS, TRANSFORMS
    from mmengine.registry import init_default_scope

    init_default_scope('mmdet')
    names: dict = {}
    exec(compile(blocks('python', MIGRATION)[0], 'page', 'exec'), names)
    assert [type(TRANSFORMS.build(step)).__name__ for step in names['pipeline']]
    assert METRICS.build(names['val_evaluator']).match == 'mask'


def test_the_page_names_converters_and_keys_that_exist():
    from gclip_mm.cli.convert import CONVERTERS
    from gclip_mm.scene_graph.evaluation.masks import MATCHES

    named = set(re.findall(r'gclip convert (\w+)', MIGRATION))
    assert named == set(CONVERTERS) - {'proposals'}
    assert all(f"| `'{match}'` |" in MIGRATION for match in MATCHES)
