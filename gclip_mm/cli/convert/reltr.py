"""``gclip convert reltr``: convert RelTR's COCO files and rel.json to scene-graph JSON."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...scene_graph.datasets.json_file import read_json
from ...scene_graph.datasets.layouts import BACKGROUND
from ...scene_graph.datasets.writer import SceneGraphWriter
from ..arguments import exit_code, new_parser
from .output import add_output, refuse_existing, write_all

DESCRIPTION = """\
Convert the annotations of RelTR (Cong et al., arXiv 2201.11460) to scene-graph JSON.

Reads the folder that RelTR calls ann_path: train.json, val.json and test.json in COCO's format, and
rel.json, which has for each split the relations of each image as [subject, object, predicate].
Subject and object count the boxes of the image, without crowds, and the predicate indexes
"rel_categories". A split that is not there is left out."""

SPLITS = ('train', 'val', 'test')
#: Metric conventions of the two data sets of RelTR.
CONVENTIONS = ('vg150', 'openimages')


def add_split(
    writer: SceneGraphWriter,
    content: Mapping[str, Any],
    rel: Mapping[str, Any],
    class_of: Mapping[Any, int],
    first: int,
) -> None:
    """Add all images of a split.

    Args:
        writer: of the split.
        content: the COCO file.
        rel: relations by image id, as text.
        class_of: label by category id.
        first: index of the first predicate in ``rel_categories``, 1 if the background has one.

    Raises:
        ValueError: a box, a class or a relation is malformed; the message names the image.
    """
    boxes_of: dict[Any, list[Mapping[str, Any]]] = {}
    for annotation in content['annotations']:
        if not annotation.get('iscrowd'):
            boxes_of.setdefault(annotation['image_id'], []).append(annotation)
    for image in content['images']:
        annotations = boxes_of.get(image['id'], [])
        rows = rel.get(str(image['id']), [])
        if not rows:
            writer.repaired['images without relations kept'] += 1
        try:
            boxes = np.array([a['bbox'] for a in annotations], np.float64).reshape(-1, 4)
            boxes[:, 2:] += boxes[:, :2]
            writer.add_image(
                image['file_name'],
                image['width'],
                image['height'],
                boxes,
                [class_of[a['category_id']] for a in annotations],
                [(s, o, predicate - first) for s, o, predicate in rows],
                image_id=image['id'],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f'image {image.get("id")!r}: {error!r}') from error


def build_parser(prog: str = 'gclip convert reltr') -> argparse.ArgumentParser:
    """The parser."""
    parser = new_parser(
        prog, DESCRIPTION, 'gclip convert reltr --annotations data/vg --out data/reltr_vg'
    )
    parser.add_argument(
        '--annotations', type=Path, required=True, help='folder of rel.json and the COCO files'
    )
    parser.add_argument(
        '--convention',
        choices=CONVENTIONS,
        help='metric convention to write into the files (default: none)',
    )
    add_output(parser)
    return parser


def parse_args(
    argv: list[str] | None = None, prog: str = 'gclip convert reltr'
) -> argparse.Namespace:
    """Parse and check the arguments."""
    return build_parser(prog).parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Convert and write the files; a bad input leaves none of them behind.

    Raises:
        ValueError: the input is malformed.
        OSError: a file is missing, or one of the targets exists.
    """
    refuse_existing(args, SPLITS)
    path = args.annotations / 'rel.json'
    rel = read_json(path)
    names = rel.get('rel_categories')
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f'{path} has no list of names "rel_categories"; it has {sorted(rel)}')
    first = int(names[:1] == [BACKGROUND])
    files = {
        split: file
        for split in SPLITS
        if split in rel and (file := args.annotations / f'{split}.json').is_file()
    }
    if not files:
        raise FileNotFoundError(f'{args.annotations} has none of the files of {SPLITS}')
    writers = {}
    for split, file in files.items():
        content = read_json(file)
        missing = [k for k in ('images', 'annotations', 'categories') if k not in content]
        if missing:
            raise ValueError(f'{file} has no {missing[0]!r}; it has {sorted(content)}')
        categories = [c for c in content['categories'] if c['name'] != BACKGROUND]
        info: dict[str, Any] = dict(description=f'RelTR annotations, {split}')
        if args.convention:
            info['convention'] = args.convention
        writers[split] = SceneGraphWriter([c['name'] for c in categories], names[first:], info=info)
        try:
            labels = {category['id']: label for label, category in enumerate(categories)}
            add_split(writers[split], content, rel[split], labels, first)
        except ValueError as error:
            raise ValueError(f'{file}, {error}') from error
    write_all(args, writers)


def main(argv: list[str] | None = None, prog: str = 'gclip convert reltr') -> int:
    """Run the command; returns the exit code."""
    args = parse_args(argv, prog)
    return exit_code(lambda: run(args), ValueError, OSError)
