"""Train with MMEngine's runners in one or more processes: ``torchrun runner_worker.py JOBS OUT``.

JOBS is a JSON file with jobs by name. Rank 0 writes to OUT the whole parameters, the histories and
the clipping state of each job. Without torchrun, the same job is the reference: one process with
the whole batch.
"""

import os
import signal
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, HOOKS, MODELS
from mmengine.runner import FlexibleRunner, Runner
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

import gclip_mm  # noqa: F401  registers the package
from gclip_mm.clipping.step.engine import GradClipEngine
from gclip_mm.engine.dist import set_up_cpu_distributed

BATCH = 8
ITERS = 8


@MODELS.register_module()
class SpreadNet(BaseModel):
    """Two layers that are used and, with ``spare``, one that is not."""

    def __init__(self, spare: bool = False) -> None:
        super().__init__()
        # The runners consume different amounts of random numbers before this point.
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Linear(4, 6), nn.Tanh())
        self.head = nn.Linear(6, 1)
        if spare:
            self.spare = nn.Linear(3, 3)

    def forward(self, inputs: torch.Tensor, target: torch.Tensor, mode: str = 'tensor', **_: Any):
        error = self.head(self.backbone(inputs)) - target
        return {'loss': error.square().mean()} if mode == 'loss' else error


@DATASETS.register_module()
class SpreadData(BaseDataset):
    """Fixed samples; iteration 2 has very large targets, and iteration 5 has a NaN."""

    def load_data_list(self) -> list[dict]:
        generator = torch.Generator().manual_seed(7)
        x = torch.randn(8 * BATCH, 4, generator=generator)
        target = 3 * x.sum(1, keepdim=True)
        target[2 * BATCH : 3 * BATCH] *= 20
        target[5 * BATCH + 3] = float('nan')
        return [dict(inputs=a, target=b) for a, b in zip(x, target, strict=True)]


@HOOKS.register_module()
class CountSyncs(Hook):
    """Count the gradient all-reduces of DistributedDataParallel."""

    def before_train(self, runner: Runner) -> None:
        self.count = 0
        if isinstance(runner.model, nn.parallel.DistributedDataParallel):
            runner.model.register_comm_hook(None, self.exchange)

    def exchange(self, _: Any, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        self.count += 1
        buffer = bucket.buffer().div_(dist.get_world_size())
        work = dist.all_reduce(buffer, async_op=True)
        return work.get_future().then(lambda future: future.value()[0])


@HOOKS.register_module()
class KillHook(Hook):
    """Kill one rank by SIGKILL within an iteration; write the time and all process ids to files."""

    def __init__(self, rank: int, at: int) -> None:
        self.rank = rank
        self.at = at

    def before_train(self, runner: Runner) -> None:
        Path(runner.work_dir, f'pid_{runner.rank}').write_text(str(os.getpid()))

    def before_train_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        if (runner.rank, runner.iter) == (self.rank, self.at):
            runner.optim_wrapper.optimizer.register_step_pre_hook(lambda *_: self.die(runner))

    def die(self, runner: Runner) -> None:
        Path(runner.work_dir, 'killed_at').write_text(str(time.time()))
        os.kill(os.getpid(), signal.SIGKILL)


def by_epochs(cfg: Config) -> None:
    """Three epochs of eight shuffled iterations, with a checkpoint of all state per epoch."""
    cfg.train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=3)
    cfg.train_dataloader.sampler = dict(type='DefaultSampler', shuffle=True)
    cfg.default_hooks.checkpoint = dict(type='GClipCheckpointHook', by_epoch=True, interval=1)
    cfg.custom_hooks.append(dict(type='GClipRNGStateHook'))


def config(job: dict) -> Config:
    world = dist.get_world_size() if dist.is_initialized() else 1
    accumulate = job.get('accumulate', 1)
    wrapper = dict(
        type=job.get('wrapper', 'GClipOptimWrapper'),
        optimizer=job['optimizer'],
        clip_grad=job['clip_grad'],
        **job.get('wrapper_keys', {}),
    )
    hooks = [dict(type='CountSyncs')]
    if job.get('door') == 'hook':
        hooks.append(dict(type='GClipHook', clip_grad=wrapper.pop('clip_grad')))
    if accumulate > 1:
        wrapper['accumulative_counts'] = accumulate
    cfg = Config(
        dict(
            model=dict(type='SpreadNet', spare=job.get('spare', False)),
            train_dataloader=dict(
                batch_size=BATCH // world,
                num_workers=0,
                dataset=dict(type='SpreadData', serialize_data=False),
                sampler=dict(type='InfiniteSampler', shuffle=False),
                collate_fn=dict(type='default_collate'),
            ),
            optim_wrapper=wrapper,
            train_cfg=dict(by_epoch=False, max_iters=job.get('iters', ITERS)),
            default_hooks=dict(
                checkpoint=dict(type=job.get('saver', 'CheckpointHook'), interval=4, by_epoch=False)
            ),
            custom_hooks=hooks,
            randomness=dict(seed=0),
            default_scope='mmengine',
            log_level='WARNING',
            work_dir=job['work_dir'],
            experiment_name=f'{job["work_dir"]} of {world}'.replace('/', '_'),
            launcher='pytorch' if dist.is_initialized() else 'none',
            find_unused_parameters=job.get('spare', False),
            load_from=job.get('load_from'),
            resume='load_from' in job or job.get('resume', False),
        )
    )
    if job.get('epochs'):
        by_epochs(cfg)
    if 'kill' in job:
        cfg.custom_hooks.append(dict(type='KillHook', rank=job['kill'][0], at=job['kill'][1]))
    if 'strategy' in job and dist.is_initialized():
        cfg.strategy = job['strategy']
    return cfg


def train(job: dict) -> dict[str, Any]:
    cfg = config(job)
    set_up_cpu_distributed(cfg)
    runner = (FlexibleRunner if 'strategy' in cfg else Runner).from_cfg(cfg)
    runner.train()
    engine = GradClipEngine.on(runner.optim_wrapper.optimizer)
    scaler = getattr(runner.optim_wrapper, 'loss_scaler', None)
    hub = runner.message_hub
    norm = hub.get_scalar('train/grad_norm').data[0].tolist()
    params = whole_params(runner.model)
    require_equal_ranks(params)
    return {
        'params': params,
        'grad_norm': norm,
        'norms_of_ranks': gather(norm),
        'state': {} if engine is None else engine.state_dict(),
        'syncs': next(hook.count for hook in runner.hooks if isinstance(hook, CountSyncs)),
        'kind': type(runner.model).__name__,
        'half': job.get('wrapper_keys', {}).get('dtype') == 'float16',
        'scale': None if scaler is None else scaler.get_scale(),
    }


def whole_params(model: nn.Module) -> dict[str, torch.Tensor]:
    def named() -> dict[str, torch.Tensor]:
        parts = ('_fsdp_wrapped_module.', 'module.')
        found = {}
        for name, p in model.named_parameters():
            for part in parts:
                name = name.replace(part, '')
            found[name] = p.detach().clone()
        return found

    if not isinstance(model, FullyShardedDataParallel):
        return named()
    with FullyShardedDataParallel.summon_full_params(model):
        return named()


def gather(value: Any) -> list[Any]:
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def require_equal_ranks(params: dict[str, torch.Tensor]) -> None:
    for other in gather(params):
        for name, value in params.items():
            if not torch.equal(other[name], value):
                raise AssertionError(f'the ranks differ in {name}')


if __name__ == '__main__':
    import mmengine.config.config
    from worker import main  # in the folder of this script, which is on sys.path

    # Formatting the config dump takes longer than such a run.
    mmengine.config.config.FormatCode = lambda text, **_: (text, True)
    main(train)
