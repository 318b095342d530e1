"""``gclip export-onnx``: write a trained scene-graph model as ONNX files."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..engine.configs import LaunchError, load_config
from .arguments import add_cfg_options, add_config, add_json, exit_code, new_parser, only_json

DESCRIPTION = """\
Write a trained scene-graph model as ONNX files, and compare them with PyTorch.

detector.onnx
    from a picture (1, 3, H, W), float, BGR, 0 to 255, to feature maps and, in SGDet, boxes;
    normalises and pads the picture itself.
relation_head.onnx
    from feature maps, boxes and, in PredCls, labels to the scores of objects and predicates of all
    pairs, and of the scene.

Both take pictures of any size and any number of objects. ONNX Runtime and PyTorch are compared at
three sizes of picture; a difference above --tolerance is a failure. In Python,
gclip_mm.scene_graph.export.runtime.OnnxSceneGraph runs the files with ONNX Runtime.

Needs onnx and onnxruntime: pip install onnx onnxruntime."""


def build_parser(prog: str = 'gclip export-onnx') -> argparse.ArgumentParser:
    """The parser."""
    parser = new_parser(
        prog,
        DESCRIPTION,
        'gclip export-onnx my_config.py work_dirs/my_config/iter_400.pth --out exported',
    )
    add_config(parser)
    parser.add_argument('checkpoint', type=Path, help='checkpoint file')
    parser.add_argument('--out', type=Path, required=True, help='folder to write to')
    parser.add_argument(
        '--opset', type=int, default=17, help="version of ONNX's operators (default: 17)"
    )
    parser.add_argument(
        '--tolerance',
        type=float,
        default=1e-3,
        help='largest difference of a score, or of a box in pixels (default: 0.001)',
    )
    add_cfg_options(parser)
    add_json(parser)
    return parser


def parse_args(
    argv: list[str] | None = None, prog: str = 'gclip export-onnx'
) -> argparse.Namespace:
    """Parse and check the arguments."""
    parser = build_parser(prog)
    args = parser.parse_args(argv)
    if args.opset < 16:
        parser.error(f'--opset must be at least 16, the first with RoiAlign as here: {args.opset}')
    if not args.tolerance > 0:
        parser.error(f'--tolerance must be above 0, got {args.tolerance}')
    return args


def build_model(cfg: Config, path: Path) -> tuple[Any, dict[str, Any]]:
    """The model with the weights of a checkpoint, and the names in the checkpoint.

    Raises:
        FileNotFoundError: the checkpoint is not there.
        ValueError: it belongs to another model.
    """
    from mmdet.registry import MODELS
    from mmengine.registry import init_default_scope
    from mmengine.runner import load_checkpoint
    from mmengine.runner.checkpoint import _load_checkpoint

    from ..scene_graph.export.onnx_files import check_exportable
    from ..scene_graph.models.weights import check_weights

    if not path.is_file():
        raise FileNotFoundError(f'checkpoint {path} does not exist')
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    model = check_exportable(MODELS.build(cfg.model))
    checkpoint = _load_checkpoint(str(path), map_location='cpu')
    check_weights(model, checkpoint)
    load_checkpoint(model, str(path), map_location='cpu')
    return model.eval(), checkpoint.get('meta', {}).get('dataset_meta') or {}


def scale_of(cfg: Config) -> list[int] | None:
    """The size into which the test pipeline fits a picture; None if it does not resize.

    Raises:
        ValueError: it resizes in a way that the runtime does not know.
    """
    steps = cfg.test_dataloader.dataset.pipeline
    resizes = [step for step in steps if 'Resize' in str(step['type'])]
    if not resizes:
        return None
    step = resizes[0]
    if len(resizes) > 1 or step['type'] not in ('Resize', 'mmdet.Resize') or 'scale' not in step:
        raise ValueError(f'the test pipeline must resize once, by Resize(scale=...); got {resizes}')
    if not step.get('keep_ratio', False):
        raise ValueError('the test pipeline must resize with keep_ratio=True')
    return list(step.scale)


def run(args: argparse.Namespace) -> None:
    """Export and compare.

    Raises:
        ValueError, OSError, ImportError: the model cannot be exported, or ONNX differs.
    """
    from ..scene_graph.export.onnx_files import compare, export

    with only_json(args.json) as result:
        cfg = load_config(args.config, args.cfg_options, None, 'none')
        model, names = build_model(cfg, args.checkpoint)
        metadata = dict(
            protocol=model.protocol.value,
            scale=scale_of(cfg),
            nms_iou_thr=model.relation_test_cfg['nms_iou_thr'],
            max_relations=model.relation_test_cfg['max_relations'],
            **{
                key: list(names.get(key) or map(str, range(count)))
                for key, count in (
                    ('classes', model.relation_head.num_classes),
                    ('predicates', model.relation_head.num_predicates),
                    ('scenes', 0 if model.scene_head is None else model.scene_head.num_scenes),
                )
            },
        )
        files = export(model, args.out, metadata, args.opset)
        differences = compare(model, args.out)
        for path in files.values():
            print(f'{path}: {path.stat().st_size / 2**20:.1f} MiB')
        for number, values in enumerate(differences, start=1):
            listing = ', '.join(f'{key} {value:.1e}' for key, value in values.items())
            print(f'size {number}: largest difference from PyTorch: {listing}')
        worst = max(value for values in differences for value in values.values())
        result.update(files=files, differences=differences, **metadata)
        if not worst <= args.tolerance:
            raise ValueError(
                f'ONNX Runtime differs from PyTorch by {worst:.3g}, more than {args.tolerance}'
            )


def main(argv: list[str] | None = None, prog: str = 'gclip export-onnx') -> int:
    """Run the command; returns the exit code."""
    args = parse_args(argv, prog)
    return exit_code(lambda: run(args), ValueError, OSError, ImportError, LaunchError)
