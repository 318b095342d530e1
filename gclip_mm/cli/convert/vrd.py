"""``gclip convert vrd``: convert VRD, Visual Relationship Detection, to scene-graph JSON."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from ...scene_graph.datasets.json_file import read_json
from ...scene_graph.datasets.writer import SceneGraphWriter
from ..arguments import exit_code, new_parser
from .output import add_output, refuse_existing, write_all

DESCRIPTION = """\
Convert VRD, Visual Relationship Detection (Lu et al., arXiv 1608.00187), to scene-graph JSON.

Reads objects.json and predicates.json (lists of names), annotations_train.json and
annotations_test.json (a list of relations for each picture, boxes as [ymin, ymax, xmin, xmax]), and
the sizes of the pictures from --images, which has the folders of VRD: sg_train_images and
sg_test_images. Objects with the same class and box are one. Pictures without relations are left
out."""

SPLITS = ('train', 'test')
_ENDS = ('subject', 'object')
Object = tuple[int, tuple[float, float, float, float]]  # class and xyxy


def objects_of(relation: Mapping[str, Any]) -> tuple[Object, Object]:
    """Subject and object of a relation.

    Raises:
        ValueError: a key is missing, or a box is not [ymin, ymax, xmin, xmax].
    """
    found: list[Object] = []
    for end in _ENDS:
        entry = relation.get(end)
        if not isinstance(entry, Mapping) or not {'category', 'bbox'} <= set(entry):
            raise ValueError(f'{end!r} must have "category" and "bbox", got {entry}')
        box = entry['bbox']
        if len(box) != 4 or not (box[0] < box[1] and box[2] < box[3]):
            raise ValueError(f'bbox must be [ymin, ymax, xmin, xmax], got {box}')
        y1, y2, x1, x2 = box
        found.append((entry['category'], (x1, y1, x2, y2)))
    return found[0], found[1]


def add_picture(
    writer: SceneGraphWriter, path: Path, file_name: str, relations: Sequence[Mapping[str, Any]]
) -> None:
    """Add a picture and its relations.

    Raises:
        ValueError: a relation is malformed, or an index has no name.
    """
    rows = [(*objects_of(relation), relation.get('predicate')) for relation in relations]
    objects = list(dict.fromkeys(end for row in rows for end in row[:2]))
    triplets = dict.fromkeys((objects.index(s), objects.index(o), p) for s, o, p in rows)
    with Image.open(path) as image:
        width, height = image.size
    writer.add_image(
        file_name,
        width,
        height,
        [box for _, box in objects],
        [label for label, _ in objects],
        list(triplets),  # type: ignore[arg-type]
    )


def build_parser(prog: str = 'gclip convert vrd') -> argparse.ArgumentParser:
    """The parser."""
    parser = new_parser(
        prog,
        DESCRIPTION,
        'gclip convert vrd --annotations json_dataset --images sg_dataset --out data/vrd',
    )
    parser.add_argument(
        '--annotations', type=Path, required=True, help='folder of the four JSON files'
    )
    parser.add_argument(
        '--images', type=Path, required=True, help='folder of sg_train_images and sg_test_images'
    )
    parser.add_argument(
        '--skip-missing', action='store_true', help='leave out pictures whose file is not there'
    )
    add_output(parser)
    return parser


def parse_args(
    argv: list[str] | None = None, prog: str = 'gclip convert vrd'
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
    classes, predicates = (
        read_json(args.annotations / f'{name}.json', expect=list)
        for name in ('objects', 'predicates')
    )
    writers = {}
    for split in SPLITS:
        path = args.annotations / f'annotations_{split}.json'
        writer = writers[split] = SceneGraphWriter(
            classes, predicates, info=dict(description=f'VRD, {split}', convention='vrd')
        )
        for name, relations in tqdm(read_json(path).items(), desc=split, unit='picture'):
            if not relations:
                writer.repaired['pictures without relations left out'] += 1
                continue
            file_name = f'sg_{split}_images/{name}'
            if not (args.images / file_name).is_file():
                if not args.skip_missing:
                    raise FileNotFoundError(
                        f'{args.images / file_name} does not exist; pass --skip-missing to leave '
                        'such pictures out'
                    )
                writer.repaired['pictures left out, for their files are missing'] += 1
                continue
            try:
                add_picture(writer, args.images / file_name, file_name, relations)
            except (ValueError, TypeError) as error:
                raise ValueError(f'{path}, picture {name!r}: {error}') from error
    write_all(args, writers)


def main(argv: list[str] | None = None, prog: str = 'gclip convert vrd') -> int:
    """Run the command; returns the exit code."""
    args = parse_args(argv, prog)
    return exit_code(lambda: run(args), ValueError, OSError)
