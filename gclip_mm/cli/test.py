"""``gclip test``: MMDetection's test.py, for checkpoints written with any clipping."""

from __future__ import annotations

import argparse
import os
import sys
from copy import deepcopy

from mmengine.config import Config, ConfigDict
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from ..clipping import ClipConfigError
from ..engine.configs import LaunchError, load_config
from ..engine.dist import close_distributed, set_up_cpu_distributed
from .arguments import add_cfg_options, add_config, add_launcher, new_parser
from .launch import explain_missing_data, limit_dynamo_cache


def build_parser(prog: str = 'gclip test') -> argparse.ArgumentParser:
    """The parser; its flags are those of MMDetection's test.py."""
    parser = new_parser(
        prog,
        'Evaluate a checkpoint on the test split of a config.',
        'gclip test CONFIG work_dirs/mine/epoch_12.pth --show-dir pictures',
    )
    add_config(parser)
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument(
        '--work-dir', help='where the metrics are saved (default: work_dirs/<config name>)'
    )
    parser.add_argument(
        '--out', help='dump the predictions to this .pkl file, scene graphs with their ground truth'
    )
    parser.add_argument('--show', action='store_true', help='show the predictions in a window')
    parser.add_argument(
        '--show-dir', help='save the painted images here, below <work dir>/<timestamp>'
    )
    parser.add_argument(
        '--wait-time', type=float, default=2, help='seconds that --show keeps an image up'
    )
    add_cfg_options(parser)
    parser.add_argument('--tta', action='store_true', help='test-time augmentation')
    add_launcher(parser, 'tools/dist_test.sh')
    return parser


def use_tta(cfg: Config, prog: str) -> None:
    """Test with the augmentations of the config, or with a horizontal flip if it has none."""
    if 'tta_model' not in cfg:
        print(f'{prog}: the config has no tta_model; merging by NMS at IoU 0.5')
        cfg.tta_model = dict(
            type='DetTTAModel',
            tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100),
        )
    if 'tta_pipeline' not in cfg:
        print(f'{prog}: the config has no tta_pipeline; adding a horizontal flip')
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


def configure(args: argparse.Namespace, prog: str = 'gclip test') -> Config:
    """The config for the Runner, with every flag applied.

    Raises:
        LaunchError: a flag does not fit the config, or a file is missing.
    """
    cfg = load_config(args.config, args.cfg_options, args.work_dir, args.launcher)
    if '://' not in args.checkpoint and not os.path.exists(args.checkpoint):
        raise LaunchError(f'checkpoint {args.checkpoint!r} is not there')
    if args.out is not None and not args.out.endswith(('.pkl', '.pickle')):
        raise LaunchError(f'--out {args.out!r} has to end in .pkl or .pickle')
    cfg.load_from = args.checkpoint
    if args.show or args.show_dir:
        from mmdet.engine.hooks.utils import trigger_visualization_hook

        cfg = trigger_visualization_hook(cfg, args)
    if args.tta:
        use_tta(cfg, prog)
    return cfg


def dumper(evaluator: Evaluator, file: str) -> BaseMetric:
    """The metric that writes predictions; those of scene graphs with their ground truth."""
    from ..scene_graph.evaluation import SceneGraphMetric
    from ..scene_graph.evaluation.dump import DumpSceneGraphs

    for metric in evaluator.metrics:
        if isinstance(metric, SceneGraphMetric):
            return DumpSceneGraphs(metric, file)
    from mmdet.evaluation import DumpDetResults

    return DumpDetResults(out_file_path=file)


def test(args: argparse.Namespace, prog: str = 'gclip test') -> None:
    """Evaluate with parsed arguments."""
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    limit_dynamo_cache()
    cfg = configure(args, prog)
    set_up_cpu_distributed(cfg)
    with explain_missing_data(cfg):
        runner = Runner.from_cfg(cfg) if 'runner_type' not in cfg else RUNNERS.build(cfg)
        if args.out is not None:
            runner.test_evaluator.metrics.append(dumper(runner.test_evaluator, args.out))
        runner.test()
    del runner
    close_distributed()


def main(argv: list[str] | None = None, prog: str = 'gclip test') -> int:
    """Run the command; exits with 1 and one line for a mistake in the command or the config."""
    try:
        test(build_parser(prog).parse_args(argv), prog)
    except (LaunchError, ClipConfigError) as error:
        sys.exit(f'{prog}: error: {error}')
    return 0
