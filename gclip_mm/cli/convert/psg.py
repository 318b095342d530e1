"""``gclip convert psg``: convert PSG, Panoptic Scene Graphs, to scene-graph JSON."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ...scene_graph.datasets.json_file import read_json
from ...scene_graph.datasets.writer import SceneGraphWriter
from ..arguments import exit_code, new_parser

DESCRIPTION = """\
Convert PSG, Panoptic Scene Graphs (Yang et al., arXiv 2207.11247), to scene-graph JSON.

Reads psg.json and writes train.json and test.json: the boxes of things and stuff with the
relations among them. As published, images without relations are left out, test images are those
in "test_image_ids", and a triplet that is annotated twice for a pair counts once. Crowd segments
are boxes like others, because PSG relates them too. The panoptic pictures are named, and the
segment of each box, for LoadSceneGraphAnnotations(with_seg=True) and metrics by masks."""


XYXY, XYWH = 0, 1  # Detectron2's BoxMode, which "bbox_mode" is
_KEYS = {
    'data': list,
    'thing_classes': list,
    'stuff_classes': list,
    'predicate_classes': list,
    'test_image_ids': list,
}
_IMAGE_KEYS = ('image_id', 'file_name', 'width', 'height', 'annotations', 'relations')


def read_psg(path: Path) -> dict[str, Any]:
    """Read and check psg.json.

    Raises:
        ValueError: If something is missing, or an image is in it twice.
    """
    content = read_json(path)
    for key, kind in _KEYS.items():
        if not isinstance(content.get(key), kind):
            raise ValueError(f'{path} has no list {key!r}; it has {sorted(content)}')
    seen = set()
    for number, image in enumerate(content['data']):
        missing = [key for key in _IMAGE_KEYS if key not in image]
        if missing:
            raise ValueError(f'{path}: data[{number}] has no {missing[0]!r}')
        if image['image_id'] in seen:
            raise ValueError(f'{path}: image {image["image_id"]!r} is there twice')
        seen.add(image['image_id'])
    return content


def image_boxes(image: Mapping[str, Any], num_things: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (N, 4) xyxy and labels (N,) of an image.

    Raises:
        ValueError: If annotations and segments do not fit, or a box's format is unknown.
    """
    annotations = image['annotations']
    segments = image.get('segments_info')
    if segments is not None and len(segments) != len(annotations):
        raise ValueError(f'{len(annotations)} annotations but {len(segments)} segments')
    boxes, labels = [], []
    for number, annotation in enumerate(annotations):
        x, y, a, b = annotation['bbox']
        mode = annotation.get('bbox_mode', XYXY)
        if mode not in (XYXY, XYWH):
            raise ValueError(f'annotation {number} has bbox_mode {mode}, which is not 0 or 1')
        boxes.append([x, y, a, b] if mode == XYXY else [x, y, x + a, y + b])
        labels.append(annotation['category_id'])
        if segments is not None:
            segment = segments[number]
            is_thing = annotation['category_id'] < num_things
            if (
                segment['category_id'] != annotation['category_id']
                or bool(segment.get('isthing', is_thing)) != is_thing
            ):
                raise ValueError(
                    f'annotation {number} and segment {number} are of different categories'
                )
    return np.array(boxes, np.float64).reshape(-1, 4), np.array(labels, np.int64)


def segments_of(image: Mapping[str, Any]) -> tuple[str, list[int]] | None:
    """Panoptic picture and segment ids of an image; None if psg.json does not name them.

    Raises:
        ValueError: If a segment has no id, or two have the same.
    """
    name, segments = image.get('pan_seg_file_name'), image.get('segments_info')
    if not name or segments is None:
        return None
    ids = [segment['id'] for segment in segments]
    if len(set(ids)) != len(ids):
        raise ValueError(f'two segments have the same id: {ids}')
    return name, ids


def build_parser(prog: str = 'gclip convert psg') -> argparse.ArgumentParser:
    """The parser."""
    parser = new_parser(
        prog,
        DESCRIPTION,
        'gclip convert psg --psg psg.json --out data/psg',
    )
    parser.add_argument('--psg', type=Path, required=True, help='psg.json')
    parser.add_argument('--out', type=Path, required=True, help='folder to write to')
    parser.add_argument('--overwrite', action='store_true', help='replace files that are there')
    return parser


def parse_args(
    argv: list[str] | None = None, prog: str = 'gclip convert psg'
) -> argparse.Namespace:
    """Parse and check the arguments."""
    return build_parser(prog).parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Convert and write the files; a bad input leaves none of them behind.

    Raises:
        ValueError: the input is malformed.
        OSError: a file is missing, or one of the targets exists.
    """
    targets = {split: args.out / f'{split}.json' for split in ('train', 'test')}
    present = [str(path) for path in targets.values() if path.exists()]
    if present and not args.overwrite:
        raise FileExistsError(f'{present[0]} exists; pass --overwrite to replace it')
    content = read_psg(args.psg)
    things, stuff = content['thing_classes'], content['stuff_classes']
    test_ids = set(content['test_image_ids'])
    # PSG has ids of its own, as text; COCO's are in `coco_image_id`. Tools for COCO want numbers.
    numeric = all(str(image['image_id']).isdecimal() for image in content['data'])
    writers = {
        split: SceneGraphWriter(
            [*things, *stuff],
            content['predicate_classes'],
            info=dict(description=f'PSG, {split}', convention='psg'),
            things=[True] * len(things) + [False] * len(stuff),
        )
        for split in targets
    }
    repeated = 0
    for image in tqdm(content['data'], unit='image', mininterval=0.5):
        if not image['relations']:
            continue
        try:
            boxes, labels = image_boxes(image, len(things))
            if any(len(relation) != 3 for relation in image['relations']):
                raise ValueError('a relation is not [subject, object, predicate]')
            relations = list(dict.fromkeys(tuple(relation) for relation in image['relations']))
            repeated += len(image['relations']) - len(relations)
            writers['test' if image['image_id'] in test_ids else 'train'].add_image(
                image['file_name'],
                image['width'],
                image['height'],
                boxes,
                labels,
                np.array(relations, np.int64),
                image_id=int(image['image_id']) if numeric else None,
                segments=segments_of(image),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f'{args.psg}, image {image["image_id"]!r}: {error!r}') from error
    known = {image['image_id'] for image in content['data']}
    unknown = test_ids - known
    if unknown:
        print(f'note: {len(unknown)} of the test_image_ids are not in the data')
    if repeated:
        print(f'note: {repeated} relations were there twice')
    for split, writer in writers.items():
        if not writer.content['images']:
            raise ValueError(f'{args.psg} has no {split} image with relations')
    for split, writer in writers.items():
        print(writer.write(targets[split], args.overwrite))


def main(argv: list[str] | None = None, prog: str = 'gclip convert psg') -> int:
    """Run the command; returns the exit code."""
    args = parse_args(argv, prog)
    return exit_code(lambda: run(args), ValueError, OSError)
