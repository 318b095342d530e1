"""Evaluate a checkpoint: MMDetection's flags, on checkpoints written with any clipping."""

from __future__ import annotations

import argparse
import os
import sys
from copy import deepcopy
from pathlib import Path

# A checkout works without being installed, and before an installed copy.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmdet.engine.hooks.utils import trigger_visualization_hook  # noqa: E402
from mmdet.evaluation import DumpDetResults  # noqa: E402
from mmdet.utils import setup_cache_size_limit_of_dynamo  # noqa: E402
from mmengine.config import Config, ConfigDict, DictAction  # noqa: E402
from mmengine.registry import RUNNERS  # noqa: E402
from mmengine.runner import Runner  # noqa: E402

import gclip_mm  # noqa: E402  registers what a config of this package names
from gclip_mm.engine.dist import close_distributed, set_up_cpu_distributed  # noqa: E402
from gclip_mm.engine.launch import LaunchError, explain_missing_data, load_config  # noqa: E402


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description='Test (and evaluate) a detector')
    parser.add_argument(
        'config', help='config file, or a stock one as mmdet::faster_rcnn/<name>.py'
    )
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument(
        '--work-dir', help='where the metrics are saved (default: work_dirs/<config name>)'
    )
    parser.add_argument('--out', help='dump the predictions to this .pkl file')
    parser.add_argument('--show', action='store_true', help='show the predictions in a window')
    parser.add_argument(
        '--show-dir', help='save the painted images here, below <work dir>/<timestamp>'
    )
    parser.add_argument(
        '--wait-time', type=float, default=2, help='seconds that --show keeps an image up'
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
        help='how the processes were started; tools/dist_test.sh sets it',
    )
    parser.add_argument('--tta', action='store_true', help='test-time augmentation')
    # torch.distributed.launch passes it with a hyphen, and before PyTorch 2.0 with an underscore.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    return parser


def use_tta(cfg: Config) -> None:
    """Test with the config's own augmentations or, where it has none, with a horizontal flip."""
    if 'tta_model' not in cfg:
        print('test.py: the config has no tta_model; merging by NMS at IoU 0.5')
        cfg.tta_model = dict(
            type='DetTTAModel',
            tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100),
        )
    if 'tta_pipeline' not in cfg:
        print('test.py: the config has no tta_pipeline; adding a horizontal flip')
        dataset = cfg.test_dataloader.dataset
        while 'dataset' in dataset:
            dataset = dataset['dataset']
        packing = dict(
            type='PackDetInputs',
            meta_keys=(
                'img_id',
                'img_path',
                'ori_shape',
                'img_shape',
                'scale_factor',
                'flip',
                'flip_direction',
            ),
        )
        flips = [dict(type='RandomFlip', prob=1.0), dict(type='RandomFlip', prob=0.0)]
        cfg.tta_pipeline = deepcopy(dataset.pipeline)
        cfg.tta_pipeline[-1] = dict(type='TestTimeAug', transforms=[flips, [packing]])
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline


def configure(args: argparse.Namespace) -> Config:
    """The config that the Runner gets, every flag applied."""
    cfg = load_config(args.config, args.cfg_options, args.work_dir, args.launcher)
    if '://' not in args.checkpoint and not os.path.exists(args.checkpoint):
        raise LaunchError(f'checkpoint {args.checkpoint!r} is not there')
    if args.out is not None and not args.out.endswith(('.pkl', '.pickle')):
        raise LaunchError(f'--out {args.out!r} has to end in .pkl or .pickle')
    cfg.load_from = args.checkpoint
    if args.show or args.show_dir:
        cfg = trigger_visualization_hook(cfg, args)
    if args.tta:
        use_tta(cfg)
    return cfg


def test(args: argparse.Namespace) -> None:
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    # Fewer recompilations when a config compiles its model.
    setup_cache_size_limit_of_dynamo()
    cfg = configure(args)
    set_up_cpu_distributed(cfg)
    with explain_missing_data(cfg):
        runner = Runner.from_cfg(cfg) if 'runner_type' not in cfg else RUNNERS.build(cfg)
        if args.out is not None:
            runner.test_evaluator.metrics.append(DumpDetResults(out_file_path=args.out))
        runner.test()
    del runner
    close_distributed()


def main(argv: list[str] | None = None) -> None:
    try:
        test(build_parser().parse_args(argv))
    except (LaunchError, gclip_mm.ClipConfigError) as error:
        sys.exit(f'test.py: error: {error}')


if __name__ == '__main__':
    main()
