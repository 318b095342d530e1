"""The two variants of the digits example, with attach and with MMEngine, train identically."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from torch.utils.data import DataLoader, TensorDataset

pytest.importorskip('sklearn', reason='scikit-learn ships the digits')

from gclip_mm.datasets.digits import load_digits

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope='module')
def example():
    spec = importlib.util.spec_from_file_location('digits', ROOT / 'examples' / 'digits_attach.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def config(tmp_path, rule='value'):
    cfg = Config.fromfile(str(ROOT / 'configs' / 'digits' / f'small-cnn_{rule}_digits.py'))
    cfg.work_dir = str(tmp_path)
    cfg.log_level = 'WARNING'
    return cfg


def test_digits_have_the_published_class_counts():
    images, labels = load_digits('train')
    test_images, test_labels = load_digits('test')
    assert images.shape == (1500, 1, 32, 32) and test_images.shape == (297, 1, 32, 32)
    assert images.min() == 0 and images.max() <= 1
    # The class counts of the 1797 digits of UCI.
    counts = torch.bincount(torch.cat([labels, test_labels]))
    assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_unknown_split_raises():
    with pytest.raises(ValueError, match="'train', 'test'"):
        load_digits('val')


def test_attach_and_mmengine_give_identical_weights(example, tmp_path):
    """One epoch in the same order gives bit-identical weights."""
    cfg = config(tmp_path)
    cfg.train_cfg.max_epochs = 1
    cfg.train_cfg.val_interval = 10
    cfg.train_dataloader.sampler.shuffle = False
    runner = Runner.from_cfg(cfg)
    torch.manual_seed(0)
    network = example.build_network()
    runner.model.network.load_state_dict(network.state_dict())
    before = [p.clone() for p in network.parameters()]
    runner.train()
    loader = DataLoader(TensorDataset(*load_digits('train')), batch_size=64, shuffle=False)
    stats = example.train(network, loader, epochs=1)
    pairs = list(zip(network.parameters(), runner.model.network.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not any(torch.equal(a, b) for a, b in zip(network.parameters(), before, strict=True))
    assert stats['grad_norm'] > 0


def test_example_script_reaches_its_accuracy(example, capsys):
    assert example.main(epochs=2) > 0.6
    assert 'accuracy on 297 digits never seen' in capsys.readouterr().out


@pytest.mark.parametrize('rule', ['value', 'norm', 'agc'])
def test_every_config_reaches_its_accuracy(rule, tmp_path):
    cfg = config(tmp_path, rule)
    cfg.train_cfg.max_epochs = 2
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert runner.val_loop.run()['accuracy/top1'] > 50
