"""FSDP1 in one process, where it shards nothing, equals training without it."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy

from gclip_mm.clipping.checks import ClipConfigError
from gclip_mm.clipping.config.registry import CLIPPERS
from gclip_mm.clipping.step.engine import GradClipEngine

RULES = {cls.__name__: cls.example for cls in map(CLIPPERS.get, CLIPPERS)}


@pytest.fixture(autouse=True, scope='module')
def one_process():
    if dist.is_initialized():
        pytest.skip('this process is in a group already')
    dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 5), nn.Linear(5, 2))


def shard(model, **options):
    options = dict(device_id=torch.device('cpu'), **options)
    return FullyShardedDataParallel(copy.deepcopy(model), **options)


def train(model, clip_grad):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    engine = GradClipEngine(optimizer, clip_grad, model=model)
    records = []
    engine.on_record = lambda record: records.append(record.tolist())
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        optimizer.zero_grad()
        loss = model(torch.randn(2, 3, 8, 8, generator=generator)).square().sum()
        loss.backward()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()]), records, engine


@pytest.mark.parametrize('rule', list(RULES))
def test_original_parameters_give_the_same_run_as_without_fsdp(rule):
    clip_grad = dict(type=rule, **RULES[rule])
    expected, records, _ = train(net(), clip_grad)
    found, found_records, engine = train(shard(net(), use_orig_params=True), clip_grad)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.tensor(found_records), torch.tensor(records), equal_nan=True)
    engine.load_state_dict(engine.state_dict())


@pytest.mark.parametrize('strategy', [ShardingStrategy.FULL_SHARD, ShardingStrategy.NO_SHARD])
def test_flat_parameters_give_the_same_run_and_refuse_agc(strategy):
    clip_grad = dict(type='NormClip', max_norm=0.1)
    expected, records, _ = train(net(), clip_grad)
    model = shard(net(), use_orig_params=False, sharding_strategy=strategy)
    found, found_records, _ = train(model, clip_grad)
    torch.testing.assert_close(found[: len(expected)], expected)
    torch.testing.assert_close(torch.tensor(found_records), torch.tensor(records))
    with pytest.raises(
        ClipConfigError, match='AGC and Auto cannot find the units .* lays it out flat'
    ):
        train(model, dict(type='AGC'))
