"""Strategies, tested in one process: adapted configs, refused configs, incomplete checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MessageHub

import gclip_mm
from gclip_mm.engine import dist
from gclip_mm.engine.checkpoints.resume import check_checkpoint, find_resumable
from gclip_mm.engine.configs import LaunchError
from gclip_mm.engine.dist import set_up_cpu_distributed

on_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason='tests behaviour without a GPU')


@pytest.fixture
def adapt(monkeypatch):
    """Run ``set_up_cpu_distributed`` on a strategy as if distributed; return the config."""
    monkeypatch.setattr(dist.dist, 'is_initialized', lambda: True)

    def run(strategy: dict | None) -> Config:
        cfg = Config(dict(launcher='pytorch', runner_type='FlexibleRunner', strategy=strategy))
        assert set_up_cpu_distributed(cfg)
        return cfg

    return run


@on_cpu
def test_strategies_are_adapted_to_the_cpu(adapt):
    assert adapt(None).strategy.model_wrapper.device_ids is None
    cfg = adapt(dict(type='FSDPStrategy', model_wrapper=dict(sharding_strategy='FULL_SHARD')))
    assert cfg.strategy.model_wrapper.to_dict() == dict(
        type='MMFullyShardedDataParallel', device_id='cpu', sharding_strategy='FULL_SHARD'
    )
    assert cfg.strategy.state_dict_cfg == 'local' and cfg.env_cfg == {}
    full = adapt(dict(type='FSDPStrategy', state_dict_cfg='full')).strategy.state_dict_cfg
    assert full.state_dict_type == 'FULL_STATE_DICT'
    for part in (full.state_dict_config, full.optim_state_dict_config):
        assert part.rank0_only and not part.offload_to_cpu


@on_cpu
@pytest.mark.parametrize('kind', ['DeepSpeedStrategy', 'ColossalAIStrategy'])
def test_strategy_that_needs_a_gpu_raises(adapt, kind):
    with pytest.raises(LaunchError, match=f"'{kind}' needs a GPU"):
        adapt(dict(type=kind))


def test_optimizer_exchanged_by_a_training_engine_raises_and_does_not_step():
    MessageHub.get_instance('exchanged')
    p = torch.nn.Parameter(torch.ones(2))
    wrapper = gclip_mm.GClipOptimWrapper(
        torch.optim.SGD([p], lr=0.1), clip_grad=dict(type='NormClip', max_norm=1.0)
    )
    wrapper.optimizer = torch.optim.SGD([p], lr=0.1)
    with pytest.raises(gclip_mm.ClipConfigError, match='exchanged .*apply_clip'):
        wrapper.update_params(p.sum())
    assert torch.equal(p.data, torch.ones(2))


def folder_of_shards(path: Path, ranks: int) -> Path:
    path.mkdir()
    for rank in range(ranks):
        torch.save({'state_dict': {}, 'optimizer': {}, 'meta': {}}, path / f'rank{rank}.pth')
    return path


def test_check_checkpoint_reports_a_damaged_or_missing_shard(tmp_path, monkeypatch):
    monkeypatch.setenv('WORLD_SIZE', '3')
    folder = folder_of_shards(tmp_path / 'iter_3.pth', 3)
    assert check_checkpoint(folder) is None
    data = (folder / 'rank2.pth').read_bytes()
    (folder / 'rank2.pth').write_bytes(data[: len(data) // 2])
    assert 'rank2.pth' in check_checkpoint(folder)
    (folder / 'rank2.pth').unlink()
    assert check_checkpoint(folder) == 'rank2.pth is not there'
    # Folders of other strategies are not checked.
    (tmp_path / 'deepspeed').mkdir()
    assert check_checkpoint(tmp_path / 'deepspeed') is None


def test_find_resumable_skips_a_folder_that_lacks_a_rank(tmp_path, monkeypatch):
    monkeypatch.setenv('WORLD_SIZE', '2')
    good = folder_of_shards(tmp_path / 'iter_3.pth', 2)
    bad = folder_of_shards(tmp_path / 'iter_6.pth', 1)
    (tmp_path / 'last_checkpoint').write_text(str(bad))
    assert find_resumable(tmp_path) == str(good)
