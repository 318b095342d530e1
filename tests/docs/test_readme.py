"""The READMEs agree with each other and with the results; the config for own data trains on it."""

from __future__ import annotations

import json
import re

import cv2
import numpy as np
import pytest
from mmdet.registry import DATASETS, METRICS
from mmengine.config import Config
from mmengine.registry import DefaultScope

import gclip_mm

from .blocks import ROOT, SHELLS, blocks, commands

README, CHINESE = ROOT / 'README.md', ROOT / 'README_zh-CN.md'


def headings(page) -> list[str]:
    """The levels of the headings, and the code in them."""
    text = re.sub(r'```.*?```', '', page.read_text(), flags=re.S)
    return [
        f'{level} {re.findall(r"`[^`]+`", title)}'
        for level, title in re.findall(r'^(#+) (.*)$', text, flags=re.M)
    ]


def code(page) -> list:
    """The code of the blocks, without comments."""
    found = []
    for block in blocks(page):
        lines = block.text.splitlines()
        if block.language in SHELLS:
            lines = commands(block)
        found.append([re.split(r'\s+#', line)[0] for line in lines])
    return found


def tables(page) -> list[list[str]]:
    """What no translation changes in the rows of the tables: links, code and numbers."""
    rows = re.findall(r'^\|.*\|$', page.read_text(), flags=re.M)
    return [re.findall(r'`[^`]+`|\]\([^)]+\)|\d[\d.]*', row) for row in rows]


def links(page) -> list[str]:
    found = re.findall(r'\]\(([^)]+)\)', page.read_text())
    return [link for link in found if not link.startswith('README')]


@pytest.mark.parametrize('of', [headings, code, tables, links])
def test_the_chinese_readme_keeps_step(of):
    assert of(CHINESE) == of(README)


@pytest.mark.parametrize('page', [README, CHINESE], ids=lambda page: page.name)
def test_the_measured_table_is_that_of_the_results(page):
    source = (ROOT / 'results' / 'auto' / 'README.md').read_text()
    (table,) = re.findall(r'<!-- table: begin -->\n(.*?)<!-- table: end -->', source, re.S)
    (shown,) = re.findall(r'<!-- auto: begin -->\n(.*?)<!-- auto: end -->', page.read_text(), re.S)
    assert shown == table


def test_the_readme_is_short():
    assert len(README.read_text().splitlines()) <= 150


def test_custom_coco_config_builds_datasets_and_metrics(tmp_path, monkeypatch):
    """The config builds on a data set with exactly the files and classes that it names."""
    (text,) = (
        b.text for b in blocks(ROOT / 'docs' / 'howto' / 'own_data.md') if 'metainfo' in b.text
    )
    (tmp_path / 'mine.py').write_text(text)
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
