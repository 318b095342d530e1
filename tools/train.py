"""Train a detector: MMDetection's flags, with clipping that survives ``--amp`` and ``--resume``."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

# A checkout works without being installed, and before an installed copy.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmdet.utils import setup_cache_size_limit_of_dynamo  # noqa: E402
from mmengine.config import Config, DictAction  # noqa: E402
from mmengine.registry import RUNNERS  # noqa: E402
from mmengine.runner import Runner  # noqa: E402

import gclip_mm  # noqa: E402  registers the wrappers and hooks, so that stock configs find them
from gclip_mm.cli.data_errors import explain_bad_data  # noqa: E402
from gclip_mm.engine.apply_clip import load_clipped  # noqa: E402
from gclip_mm.engine.checkpoints.resume import ResumeError, find_resumable  # noqa: E402
from gclip_mm.engine.dist import close_distributed, set_up_cpu_distributed  # noqa: E402
from gclip_mm.engine.launch import (  # noqa: E402
    LaunchError,
    check_clipping,
    explain_amp_on_cpu,
    explain_missing_data,
    use_amp,
)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description='Train a detector')
    parser.add_argument(
        'config', help='config file, or a stock one as mmdet::faster_rcnn/<name>.py'
    )
    parser.add_argument(
        '--work-dir', help='where logs and checkpoints go (default: work_dirs/<config name>)'
    )
    parser.add_argument(
        '--amp',
        action='store_true',
        help='train in mixed precision; the clipping of the config stays',
    )
    parser.add_argument(
        '--clip',
        metavar='RECIPE',
        help='clip the gradients: a file or name in configs/_base_/clip, or a rule such as '
        'type=AGC,clip_factor=0.01; replaces the clip_grad of the config, of which single keys may '
        'still be given by --cfg-options, and keeps the rest',
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help="scale the learning rate by batch size, from the config's auto_scale_lr",
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        help='go on from this checkpoint; without a path, from the latest one in the work dir',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='override settings of the config, as key=value: a.b=1, a.b="[1,2]", a.0.b="(1,2)"; '
        'no white space inside a value',
    )
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='how the processes were started; tools/dist_train.sh sets it',
    )
    # torch.distributed.launch passes it with a hyphen, and before PyTorch 2.0 with an underscore.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    return parser


def configure(args: argparse.Namespace) -> Config:
    """The config that the Runner gets, every flag applied."""
    cfg = load_clipped(args.config, args.clip, args.cfg_options, args.work_dir, args.launcher)
    check_clipping(cfg)
    if args.amp:
        use_amp(cfg)
    if args.auto_scale_lr:
        settings = cfg.get('auto_scale_lr', {})
        if 'enable' not in settings or 'base_batch_size' not in settings:
            raise LaunchError(
                '--auto-scale-lr needs auto_scale_lr=dict(enable=..., base_batch_size=...) '
                'in the config'
            )
        cfg.auto_scale_lr.enable = True
    if args.resume is not None:
        cfg.resume = True
        cfg.load_from = args.resume
        if args.resume == 'auto':
            # A killed run may have left half a file, which MMEngine would trip over.
            cfg.load_from = find_resumable(cfg.work_dir)
        if cfg.load_from and '://' not in cfg.load_from and not os.path.exists(cfg.load_from):
            raise LaunchError(f'--resume: checkpoint {cfg.load_from!r} is not there')
    return cfg


def train(args: argparse.Namespace) -> None:
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    # Fewer recompilations when a config compiles its model.
    setup_cache_size_limit_of_dynamo()
    cfg = configure(args)
    set_up_cpu_distributed(cfg)
    with explain_bad_data(), explain_missing_data(cfg), explain_amp_on_cpu(args.amp):
        runner = Runner.from_cfg(cfg) if 'runner_type' not in cfg else RUNNERS.build(cfg)
        runner.train()
    del runner
    close_distributed()


def main(argv: list[str] | None = None) -> None:
    try:
        train(build_parser().parse_args(argv))
    except (LaunchError, ResumeError, gclip_mm.ClipConfigError) as error:
        sys.exit(f'train.py: error: {error}')


if __name__ == '__main__':
    main()
