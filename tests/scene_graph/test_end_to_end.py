"""Trains, validates, draws, resumes and tests from a config."""

from __future__ import annotations

import copy
import json

import cv2
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner

import gclip_mm  # noqa: F401
from gclip_mm.cli import main
from gclip_mm.cli.test import dumper

CONFIG = 'configs/scene_graph/shapescenes/rnn_sgdet_shapescenes.py'


@pytest.fixture(autouse=True)
def own_scope():
    known = list(DefaultScope._instance_dict.items())
    yield
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(known)


def small(path, iters) -> Config:
    """The unchanged config, except for 8 pictures and a few iterations."""
    cfg = Config.fromfile(CONFIG)
    params = dict(num_train=8, num_val=3, image_size=(96, 80), seed=0)
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.batch_size = 2
        loader.dataset.data_root = f'{path}/data/'
        loader.dataset.params = params
    for pipeline in (cfg.val_dataloader.dataset.pipeline, cfg.test_dataloader.dataset.pipeline):
        pipeline[2].scale = (120, 100)  # differs from the picture size
    cfg.train_cfg.update(max_iters=iters, val_interval=iters)
    cfg.default_hooks.checkpoint.interval = 2
    cfg.default_hooks.visualization.update(draw=True, interval=1)
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        evaluator.convention = 'motifs'
    cfg.work_dir = f'{path}/work'
    cfg.experiment_name = f'scene_graph_{iters}'
    # MMEngine caches visualizers by name for the whole process, including their first folder.
    cfg.visualizer.name = f'{path.name}_{iters}'
    return cfg


def test_train_validate_draw_and_resume(tmp_path, capsys):
    runner = Runner.from_cfg(small(tmp_path, 2))
    runner.train()
    numbers = runner.message_hub
    for key in ('sg/R@20', 'sg/mR@20', 'sg/ngR@20', 'sg/scene_top1', 'sg/bbox_mAP'):
        assert 0 <= numbers.get_scalar(f'val/{key}').current() <= 1
    assert numbers.get_scalar('train/grad_norm').current() > 0
    assert numbers.get_scalar('train/loss_predicate').current() > 0
    drawn = sorted((tmp_path / 'work').rglob('vis_image/*.png'))
    assert drawn and cv2.imread(str(drawn[0])).shape[1] == 1400
    checkpoint = torch.load(tmp_path / 'work' / 'iter_2.pth', weights_only=False)
    assert checkpoint['meta']['dataset_meta']['predicates'][0] == 'left of'
    weights = checkpoint['state_dict']
    assert weights['relation_head.frequency_bias.ready']

    cfg = small(tmp_path, 4)
    cfg.resume = True
    resumed = Runner.from_cfg(copy.deepcopy(cfg))
    resumed.load_or_resume()
    bias = resumed.model.relation_head.frequency_bias
    # The hook counts before the checkpoint is loaded, which restores the trained logits.
    assert torch.equal(bias.weight, weights['relation_head.frequency_bias.weight'])
    assert resumed.iter == 2

    cfg = small(tmp_path, 2)
    cfg.load_from = str(tmp_path / 'work' / 'iter_2.pth')
    cfg.default_hooks.visualization.test_out_dir = 'shown'
    cfg.experiment_name = 'scene_graph_test'
    tester = Runner.from_cfg(cfg)
    file = str(tmp_path / 'out.pkl')
    tester.test_evaluator.metrics.append(dumper(tester.test_evaluator, file))
    metrics = tester.test()
    assert metrics['sg/R@20'] == pytest.approx(numbers.get_scalar('val/sg/R@20').current())
    assert len(list((tmp_path / 'work').rglob('shown/*.jpg'))) == 3
    capsys.readouterr()
    assert main(['sg-eval', file, '--json']) == 0
    result = json.loads(capsys.readouterr().out)
    assert result['images'] == 3 and result['relations'] > 0
    for key in ('R@20', 'mR@50', 'ngR@100'):
        assert result['figures']['motifs'][key] == pytest.approx(metrics[f'sg/{key}'])
