"""Quickstart and BCCD configs build; quickstart configs take a training step."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip('mmdet')

import torch
import yaml
from mmdet.registry import DATASETS, MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.optim import build_optim_wrapper

import gclip_mm  # noqa: F401  registers the types in the configs

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = sorted((ROOT / 'configs/quickstart').glob('*.py'))
BCCD = sorted((ROOT / 'configs/bccd').glob('*.py'))


@pytest.fixture(scope='module', autouse=True)
def _registered():
    register_all_modules()


def wrapper_and_model(cfg):
    model = MODELS.build(cfg.model)
    return build_optim_wrapper(model, cfg.optim_wrapper), model


@pytest.mark.parametrize('path', QUICKSTART + BCCD, ids=lambda path: path.stem)
def test_config_has_imports_for_stock_mmdet(path):
    cfg = Config.fromfile(path)
    assert cfg.custom_imports['imports'] == ['gclip_mm']
    assert cfg.default_scope == 'mmdet'
    head = cfg.model.get('roi_head', cfg.model).bbox_head
    classes = head.num_classes
    dataset = DATASETS.get(cfg.train_dataloader.dataset.type)
    assert classes == len(dataset.METAINFO['classes'])


@pytest.mark.parametrize('path', BCCD, ids=lambda path: path.stem)
def test_bccd_config_builds_and_missing_photos_raise(path, tmp_path):
    cfg = Config.fromfile(path)
    # Proposals are stored beside the folder of the photos, which may be a link.
    root = 'data/' if cfg.train_dataloader.dataset.get('proposal_file') else 'data/BCCD/'
    assert cfg.train_dataloader.dataset.data_root == root
    wrapper, _ = wrapper_and_model(cfg)
    assert type(wrapper).__name__ == cfg.optim_wrapper.type
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        with pytest.raises(FileNotFoundError, match='BCCD is not in place'):
            DATASETS.build(dict(loader.dataset, data_root=str(tmp_path)))


@pytest.mark.parametrize('path', QUICKSTART, ids=lambda path: path.stem)
def test_quickstart_config_takes_a_clipped_step(path, tmp_path):
    cfg = Config.fromfile(path)
    params = dict(num_train=4, num_val=1, image_size=cfg.params['image_size'], seed=0)
    dataset = DATASETS.build(
        dict(cfg.train_dataloader.dataset, data_root=str(tmp_path / 'data'), params=params)
    )
    torch.manual_seed(0)
    wrapper, model = wrapper_and_model(cfg)
    assert wrapper.engine is not None
    model.train()
    before = model.roi_head.bbox_head.fc_cls.weight.detach().clone()
    losses = model.train_step(pseudo_collate([dataset[k] for k in range(4)]), wrapper)
    assert torch.isfinite(losses['loss'])
    assert not torch.equal(before, model.roi_head.bbox_head.fc_cls.weight)


@pytest.mark.parametrize('folder', ['quickstart', 'bccd'])
def test_metafile_and_readme_list_every_config(folder):
    root = ROOT / 'configs' / folder
    readme = (root / 'README.md').read_text()
    listed = {
        m['Name']: m['Config']
        for m in yaml.safe_load((root / 'metafile.yml').read_text())['Models']
    }
    found = {path.stem: f'configs/{folder}/{path.name}' for path in root.glob('*.py')}
    assert listed == found
    assert all(path.rsplit('/', 1)[1] in readme for path in found.values())
