"""``gclip relations``: draw images of a scene-graph data set with boxes, relations and scene."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from tqdm import tqdm

from ..scene_graph.visualization.drawing import draw
from ..scene_graph.visualization.graph import build_graph
from .arguments import add_cfg_options, exit_code, new_parser

DESCRIPTION = """\
Draw images of a scene-graph data set with their boxes, relations and scene.

SOURCE is a config, whose data set is drawn after its pipeline (flipped and cropped, as the model
gets it), or an annotation file."""
PIPELINE = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadSceneGraphAnnotations'),
    dict(type='PackSceneGraphInputs'),
]


def build_dataset(args: argparse.Namespace) -> Any:
    """The data set of a config, or of an annotation file.

    Raises:
        ValueError: the config has no such split, or its data set has no relations.
    """
    init_default_scope('mmdet')
    if args.source.suffix == '.json':
        folder = args.images or args.source.parent
        cfg = dict(
            type='SceneGraphDataset',
            ann_file=str(args.source.resolve()),
            data_prefix=dict(img=str(folder)),
            pipeline=PIPELINE,
        )
    else:
        config = Config.fromfile(args.source)
        config.merge_from_dict(args.cfg_options or {})
        key = f'{args.split}_dataloader'
        if config.get(key) is None:
            raise ValueError(f'{args.source} has no {key}')
        cfg = config[key].dataset
    dataset = DATASETS.build(cfg)
    if not dataset.metainfo.get('predicates'):
        raise ValueError(f'the {type(dataset).__name__} of {args.source} has no relations')
    return dataset


def choose(dataset: Any, predicate: str | None) -> list[int]:
    """Indices of the images that have the predicate; without one, of all images.

    Raises:
        ValueError: the predicate does not exist, or no image has it.
    """
    names = dataset.metainfo['predicates']
    if predicate is None:
        return list(range(len(dataset)))
    if predicate not in names:
        raise ValueError(f'there is no predicate {predicate!r}; there are {list(names)}')
    label = names.index(predicate)
    chosen = [
        i
        for i in range(len(dataset))
        if (np.asarray(dataset.get_data_info(i)['relations'])[:, 2] == label).any()
    ]
    if not chosen:
        raise ValueError(f'no image has a relation {predicate!r}')
    return chosen


def picture(packed: dict, meta: dict, predicate: str | None, max_relations: int) -> np.ndarray:
    """Draw a packed image; returns (H, W, 3) RGB.

    Raises:
        ValueError: the pipeline does not pack relations.
    """
    sample = packed.get('data_samples')
    if sample is None or 'gt_relations' not in sample:
        raise ValueError('the pipeline packs no relations; it must end in PackSceneGraphInputs')
    if predicate is not None:
        label = meta['predicates'].index(predicate)
        sample.gt_relations = sample.gt_relations[sample.gt_relations.labels == label]
    sample.gt_relations = sample.gt_relations[:max_relations]
    image = packed['inputs'].permute(1, 2, 0).numpy()[..., ::-1]  # OpenCV's BGR
    graph = build_graph(sample, image.shape[:2], meta, draw_pred=False)
    return draw(np.ascontiguousarray(image), graph)


def count_table(dataset: Any, indices: Sequence[int]) -> str:
    """How often each predicate occurs in the images, most frequent first."""
    counts: Counter[int] = Counter()
    for i in indices:
        counts.update(np.asarray(dataset.get_data_info(i)['relations'])[:, 2].tolist())
    names = dataset.metainfo['predicates']
    width = max(map(len, names))
    rows = sorted(range(len(names)), key=lambda label: (-counts[label], label))
    return '\n'.join(f'{names[label]:<{width}} {counts[label]:>9}' for label in rows)


def build_parser(prog: str = 'gclip relations') -> argparse.ArgumentParser:
    """The parser."""
    parser = new_parser(
        prog,
        DESCRIPTION,
        'gclip relations configs/scene_graph/my_config.py --split train',
        'gclip relations data/vg150/train.json --images data/vg150/VG_100K \\\n'
        '      --predicate riding --num 10 --out work_dirs/riding',
    )
    parser.add_argument('source', type=Path, help='config (.py) or annotation file (.json)')
    parser.add_argument(
        '--images',
        type=Path,
        help='folder of the images of an annotation file (default: the folder of the file)',
    )
    parser.add_argument(
        '--split', choices=('train', 'val', 'test'), default='train', help='data set of a config'
    )
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('work_dirs/browse_relations'),
        help='folder of the pictures',
    )
    parser.add_argument('--num', type=int, default=20, help='how many images to draw (default: 20)')
    parser.add_argument(
        '--shuffle', type=int, metavar='SEED', help='draw images at random, not the first ones'
    )
    parser.add_argument(
        '--predicate', help='only images with this predicate, and only its relations'
    )
    parser.add_argument(
        '--max-relations', type=int, default=20, help='most relations in a picture (default: 20)'
    )
    add_cfg_options(parser)
    return parser


def parse_args(argv: list[str] | None = None, prog: str = 'gclip relations') -> argparse.Namespace:
    """Parse and check the arguments."""
    parser = build_parser(prog)
    args = parser.parse_args(argv)
    if args.num < 1 or args.max_relations < 0:
        parser.error('--num must be at least 1 and --max-relations at least 0')
    if not args.source.is_file():
        parser.error(f'{args.source} does not exist')
    return args


def run(args: argparse.Namespace) -> None:
    """Count the relations and draw the images.

    Raises:
        ValueError, OSError: the source has no such images.
    """
    dataset = build_dataset(args)
    indices = choose(dataset, args.predicate)
    print(f'{len(indices)} images; relations in them:\n{count_table(dataset, indices)}')
    if args.shuffle is not None:
        np.random.default_rng(args.shuffle).shuffle(indices)
    args.out.mkdir(parents=True, exist_ok=True)
    for i in tqdm(indices[: args.num], unit='image'):
        path = Path(dataset.get_data_info(i)['img_path'])
        if not path.is_file() and args.source.suffix == '.json':
            raise ValueError(f'there is no image {path}: --images has to name the folder')
        packed = dataset[i]
        drawn = picture(packed, dataset.metainfo, args.predicate, args.max_relations)
        name = Path(packed['data_samples'].get('img_path') or str(i)).stem
        mmcv.imwrite(drawn[..., ::-1], str(args.out / f'{i:06d}_{name}.png'))
    print(f'pictures are in {args.out}')


def main(argv: list[str] | None = None, prog: str = 'gclip relations') -> int:
    """Run the command; returns the exit code."""
    args = parse_args(argv, prog)
    return exit_code(lambda: run(args), ValueError, OSError)
