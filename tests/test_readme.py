"""The README is correct: its configs build, its code runs, its commands parse."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmdet.registry import DATASETS, METRICS
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import HOOKS, DefaultScope
from torch import nn

import gclip_mm
from gclip_mm.clipping.__main__ import table
from gclip_mm.engine.apply_clip import read_recipe
from gclip_mm.engine.configs import find_config

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / 'README.md').read_text()
BLOCKS = re.findall(r'```(\w+)\n(.*?)```', README, re.S)
PYTHON = [text for kind, text in BLOCKS if kind == 'python']
COMMANDS = [
    line.split('  #')[0].strip()
    for kind, text in BLOCKS
    if kind == 'bash'
    for line in text.replace('\\\n', ' ').splitlines()
    if line.strip() and not line.lstrip().startswith('#')
]


class Detector(nn.Module):
    """A model with the parameter name `fc_cls`, which the README's configs match."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.fc_cls = nn.Linear(4, 2)


@pytest.mark.parametrize('code', PYTHON)
def test_python_block_runs_and_its_config_builds(code):
    namespace: dict = {}
    exec(compile(code, 'README.md', 'exec'), namespace)
    if 'optim_wrapper' in namespace:
        model = Detector()
        wrapper = build_optim_wrapper(model, Config(namespace).optim_wrapper)
        wrapper.engine.bind(model)
    for hook in namespace.get('custom_hooks', ()):
        HOOKS.build(hook)
    if 'handle' in namespace:
        assert set(namespace['handle'].stats()) == set(gclip_mm.clipping.LOG_KEYS)


def test_custom_coco_config_builds_datasets_and_metrics(tmp_path, monkeypatch):
    """The config builds on a data set with exactly the files and classes that it names."""
    (code,) = (text for text in PYTHON if 'metainfo' in text)
    (tmp_path / 'mine.py').write_text(code)
    folder = tmp_path / 'data' / 'mine'
    (folder / 'images').mkdir(parents=True)
    cv2.imwrite(str(folder / 'images' / 'a.png'), np.zeros((48, 64, 3), np.uint8))
    content = dict(
        images=[dict(id=1, file_name='a.png', width=64, height=48)],
        annotations=[
            dict(id=1, image_id=1, category_id=8, bbox=[2, 2, 20, 20], area=400, iscrowd=0)
        ],
        categories=[dict(id=5, name='cat'), dict(id=8, name='dog')],
    )
    for name in ('train', 'val'):
        (folder / f'{name}.json').write_text(json.dumps(content))
    monkeypatch.chdir(tmp_path)
    cfg = gclip_mm.apply_clip(Config.fromfile('mine.py'), 'norm')
    with DefaultScope.overwrite_default_scope('mmdet'):
        for split in ('train', 'val', 'test'):
            dataset = DATASETS.build(cfg[f'{split}_dataloader'].dataset)
            assert len(dataset) == 1
            (box,) = dataset[0]['data_samples'].gt_instances.labels.tolist()
            assert dataset.metainfo['classes'][box] == 'dog'
        for split in ('val', 'test'):
            METRICS.build(cfg[f'{split}_evaluator'])
    assert cfg.model.roi_head.bbox_head.num_classes == 2


def test_rule_table_matches_registry():
    for line in table():
        assert line in README


@pytest.mark.parametrize(
    'path', sorted(set(re.findall(r'(?:configs|tools|docs)/[\w./-]+', README)))
)
def test_path_in_readme_exists(path):
    assert (ROOT / path.rstrip('.')).exists()


@pytest.mark.parametrize('command', COMMANDS)
def test_command_exists_and_knows_its_flags(command):
    words = shlex.split(command)
    while '=' in words[0]:
        words.pop(0)
    if words[0] == 'make':
        assert re.search(rf'^{words[1]}:', (ROOT / 'Makefile').read_text(), re.M)
    elif words[0] == 'python':
        assert (ROOT / words[1]).is_file()
        # Each flag must appear in the help text of the tool.
        flags = {word for word in words if word.startswith('--')}
        text = _help(words[1])
        assert all(flag in text for flag in flags)
        for word in words:
            if word.startswith(('mmdet::', 'configs/')):
                assert find_config(word)
        if '--clip' in words:
            assert read_recipe(words[words.index('--clip') + 1])
    elif words[0] == 'bash':
        assert (ROOT / words[1]).is_file()
    else:
        assert words[0] == 'pip'


def _help(tool: str) -> str:
    if tool not in _HELP:
        done = subprocess.run(
            [sys.executable, '-W', 'ignore', str(ROOT / tool), '--help'],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        _HELP[tool] = done.stdout
    return _HELP[tool]


_HELP: dict[str, str] = {}


@pytest.mark.parametrize(
    'config',
    sorted(
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / 'configs').glob('*/**/*.py')
        if '_base_' not in path.parts
    ),
)
def test_config_loads_and_its_clip_grad_parses(config):
    cfg = Config.fromfile(str(ROOT / config))
    wrapper = cfg.get('optim_wrapper')
    if wrapper is None:
        pytest.fail(f'{config} trains nothing')
    if wrapper.get('clip_grad') is not None:
        # Other tests match the routes against the model; this one only parses the config.
        gclip_mm.clipping.parse_clip_grad(wrapper.clip_grad.to_dict())
