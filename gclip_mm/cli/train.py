"""``gclip train``: MMDetection's train.py, with clipping that ``--amp`` and ``--resume`` keep."""

from __future__ import annotations

import argparse
import os
import sys

from mmengine.config import Config
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from ..clipping import ClipConfigError
from ..engine import GClipSpikeHook
from ..engine.apply_clip import load_clipped
from ..engine.checkpoints.resume import ResumeError, find_resumable
from ..engine.configs import LaunchError
from ..engine.dist import close_distributed, set_up_cpu_distributed
from .arguments import add_cfg_options, add_config, add_launcher, new_parser
from .data_errors import explain_bad_data
from .launch import (
    check_clipping,
    explain_amp_on_cpu,
    explain_missing_data,
    limit_dynamo_cache,
    use_amp,
)


def build_parser(prog: str = 'gclip train') -> argparse.ArgumentParser:
    """The parser; its flags are those of MMDetection's train.py, and ``--clip``."""
    parser = new_parser(
        prog,
        'Train the model of a config.',
        'gclip train mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py --clip agc',
        'gclip train CONFIG --clip type=NormClip,max_norm=0.1 --amp --work-dir work_dirs/mine',
        'gclip train CONFIG --resume',
    )
    add_config(parser)
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
        '--spikes',
        action='store_true',
        help='record the images of each step whose loss or gradient is an outlier or not finite, '
        'for `gclip spikes` (adds GClipSpikeHook)',
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
        help='resume from this checkpoint; without a path, from the latest one in the work dir',
    )
    add_cfg_options(parser)
    add_launcher(parser, 'tools/dist_train.sh')
    return parser


def configure(args: argparse.Namespace) -> Config:
    """The config for the Runner, with every flag applied.

    Raises:
        LaunchError: a flag does not fit the config, or a file is missing.
    """
    cfg = load_clipped(args.config, args.clip, args.cfg_options, args.work_dir, args.launcher)
    check_clipping(cfg)
    if args.amp:
        use_amp(cfg)
    if args.spikes:
        record_spikes(cfg)
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
            # A killed run may have left a truncated file, which MMEngine cannot load.
            cfg.load_from = find_resumable(cfg.work_dir)
        if cfg.load_from and '://' not in cfg.load_from and not os.path.exists(cfg.load_from):
            raise LaunchError(f'--resume: checkpoint {cfg.load_from!r} is not there')
    return cfg


def record_spikes(cfg: Config) -> None:
    """Add :class:`~gclip_mm.engine.GClipSpikeHook` to the hooks of a config that has none."""
    hooks = cfg.get('custom_hooks') or []
    if not any(hook['type'] in ('GClipSpikeHook', GClipSpikeHook) for hook in hooks):
        cfg.custom_hooks = [*hooks, dict(type='GClipSpikeHook')]


def train(args: argparse.Namespace) -> None:
    """Train with parsed arguments."""
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    limit_dynamo_cache()
    cfg = configure(args)
    set_up_cpu_distributed(cfg)
    with explain_bad_data(), explain_missing_data(cfg), explain_amp_on_cpu(args.amp):
        runner = Runner.from_cfg(cfg) if 'runner_type' not in cfg else RUNNERS.build(cfg)
        runner.train()
    del runner
    close_distributed()


def main(argv: list[str] | None = None, prog: str = 'gclip train') -> int:
    """Run the command; exits with 1 and one line for a mistake in the command or the config."""
    try:
        train(build_parser(prog).parse_args(argv))
    except (LaunchError, ResumeError, ClipConfigError) as error:
        sys.exit(f'{prog}: error: {error}')
    return 0
