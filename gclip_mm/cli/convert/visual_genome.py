"""``gclip convert visual_genome``: convert Visual Genome's relationships.json."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ...scene_graph.datasets.json_file import read_json
from ...scene_graph.datasets.writer import SceneGraphWriter
from ..arguments import exit_code, new_parser
from .output import add_output, refuse_existing, split_at_random, write_all

DESCRIPTION = """\
Convert Visual Genome's relationships.json to scene-graph JSON, with a vocabulary of your choice.

Visual Genome has free text: about 80000 names of objects and 40000 predicates. Names are put into
lower case, and the alias files of Visual Genome (object_alias.txt, relationship_alias.txt: a line
is a name and, after commas, what it replaces) unify them. Then the most frequent ones are taken, or
the names in the files of --classes and --predicates, one a line. Relations with other names are
dropped, and so are images that keep none.

The result is not VG150, whose published splits and vocabulary are in another file: for figures to
compare with the literature use `gclip convert vg150`."""

SPLITS = ('train', 'val', 'test')
_BOX = ('x', 'y', 'w', 'h')


def read_aliases(path: Path | None) -> dict[str, str]:
    """What each name is replaced by.

    Raises:
        ValueError: a line is empty.
    """
    if path is None:
        return {}
    replaced: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding='utf-8').splitlines(), start=1):
        names = [normal(name) for name in line.split(',') if name.strip()]
        if not names:
            raise ValueError(f'{path}, line {number}: the line has no names')
        for name in names[1:]:
            replaced.setdefault(name, names[0])
    return replaced


def normal(name: str) -> str:
    """A name in lower case, with single blanks."""
    return ' '.join(name.lower().split())


def name_of(entry: Mapping[str, Any], aliases: Mapping[str, str]) -> str:
    """Name of an object: ``name``, or the first of ``names`` in later releases.

    Raises:
        ValueError: it has neither.
    """
    names = [entry['name']] if 'name' in entry else entry.get('names')
    if not names:
        raise ValueError(f'an object has no name: {dict(entry)}')
    name = normal(names[0])
    return aliases.get(name, name)


def vocabulary(counts: Counter[str], size: int, path: Path | None) -> list[str]:
    """The names of a file, or the most frequent ones; ties go to the alphabet.

    Raises:
        ValueError: the file names something that never occurs.
    """
    if path is None:
        return sorted(counts, key=lambda name: (-counts[name], name))[:size]
    lines = path.read_text(encoding='utf-8').splitlines()
    names = [normal(line) for line in lines if line.strip()]
    unknown = [name for name in names if name not in counts]
    if unknown:
        raise ValueError(f'{path} names {unknown[0]!r}, which never occurs')
    return names


def read_relations(
    path: Path, object_aliases: Mapping[str, str], predicate_aliases: Mapping[str, str]
) -> dict[int, list[tuple[int, str, int, dict[int, tuple[str, list[float]]]]]]:
    """Relations of each image: subject id, predicate, object id, and both objects by id.

    Raises:
        ValueError: a relation lacks a key; the message names its image.
    """
    found: dict[int, list] = {}
    for number, image in enumerate(read_json(path, expect=list)):
        missing = [key for key in ('image_id', 'relationships') if key not in image]
        if missing:
            raise ValueError(f'{path}: entry {number} has no {missing[0]!r}')
        rows = found[image['image_id']] = []
        for relation in image['relationships']:
            try:
                predicate = normal(relation['predicate'])
                ends = [relation['subject'], relation['object']]
                objects = {
                    end['object_id']: (
                        name_of(end, object_aliases),
                        [float(end[key]) for key in _BOX],
                    )
                    for end in ends
                }
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f'{path}, image {image["image_id"]}: {error!r}') from error
            predicate = predicate_aliases.get(predicate, predicate)
            rows.append((ends[0]['object_id'], predicate, ends[1]['object_id'], objects))
    return found


def add_image(
    writer: SceneGraphWriter, image: Mapping[str, Any], rows: list, index: tuple[dict, dict]
) -> None:
    """Add an image; relations whose names are not in the vocabulary are already left out."""
    classes, predicates = index
    objects = {k: v for row in rows for k, v in row[3].items()}
    place = {key: number for number, key in enumerate(objects)}
    boxes = np.array([box for _, box in objects.values()])
    boxes[:, 2:] += boxes[:, :2]
    triplets = dict.fromkeys((place[s], place[o], predicates[p]) for s, p, o, _ in rows)
    writer.add_image(
        f'{image["image_id"]}.jpg',
        image['width'],
        image['height'],
        boxes,
        [classes[name] for name, _ in objects.values()],
        list(triplets),
        image_id=image['image_id'],
    )


def build_parser(prog: str = 'gclip convert visual_genome') -> argparse.ArgumentParser:
    """The parser."""
    parser = new_parser(
        prog,
        DESCRIPTION,
        'gclip convert visual_genome --relationships relationships.json \\\n'
        '      --image-data image_data.json --num-classes 100 --num-predicates 70 \\\n'
        '      --num-val 5000 --num-test 10000 --out data/my_vg',
    )
    parser.add_argument('--relationships', type=Path, required=True, help='relationships.json')
    parser.add_argument('--image-data', type=Path, required=True, help='image_data.json')
    for what, count in (('classes', 150), ('predicates', 50)):
        parser.add_argument(
            f'--num-{what}', type=int, default=count, help=f'most frequent ones ({count})'
        )
        parser.add_argument(f'--{what}', type=Path, help=f'file of {what}, one a line, instead')
    parser.add_argument('--object-alias', type=Path, help='object_alias.txt')
    parser.add_argument('--predicate-alias', type=Path, help='relationship_alias.txt')
    parser.add_argument('--num-val', type=int, default=5000, help='images for validation (5000)')
    parser.add_argument('--num-test', type=int, default=0, help='images for testing (0)')
    parser.add_argument('--seed', type=int, default=0, help='of the random split (0)')
    add_output(parser)
    return parser


def parse_args(
    argv: list[str] | None = None, prog: str = 'gclip convert visual_genome'
) -> argparse.Namespace:
    """Parse and check the arguments."""
    parser = build_parser(prog)
    args = parser.parse_args(argv)
    for name in ('num_classes', 'num_predicates', 'num_val'):
        if getattr(args, name) < 1:
            parser.error(f'--{name.replace("_", "-")} must be at least 1')
    if args.num_test < 0:
        parser.error('--num-test must not be negative')
    return args


def run(args: argparse.Namespace) -> None:
    """Convert and write the files; a bad input leaves none of them behind.

    Raises:
        ValueError: the input is malformed.
        OSError: a file is missing, or one of the targets exists.
    """
    refuse_existing(args, SPLITS)
    images = {image['image_id']: image for image in read_json(args.image_data, expect=list)}
    found = read_relations(
        args.relationships, read_aliases(args.object_alias), read_aliases(args.predicate_alias)
    )
    unknown = [image_id for image_id in found if image_id not in images]
    if unknown:
        raise ValueError(f'{args.image_data} has no image {unknown[0]}')
    rows = [row for of_image in found.values() for row in of_image]
    class_counts = Counter(name for row in rows for name, _ in row[3].values())
    classes = vocabulary(class_counts, args.num_classes, args.classes)
    predicates = vocabulary(Counter(row[1] for row in rows), args.num_predicates, args.predicates)
    index = (
        {name: label for label, name in enumerate(classes)},
        {name: label for label, name in enumerate(predicates)},
    )
    kept = {}
    for image_id, of_image in found.items():
        known = [
            row
            for row in of_image
            if row[1] in index[1]
            and row[0] != row[2]
            and all(name in index[0] for name, _ in row[3].values())
        ]
        if known:
            kept[image_id] = known
    held_out = {'val': args.num_val, **({'test': args.num_test} if args.num_test else {})}
    splits = split_at_random(len(kept), held_out, args.seed)
    writers = {
        split: SceneGraphWriter(
            classes, predicates, info=dict(description=f'Visual Genome relationships, {split}')
        )
        for split in ('train', *held_out)
    }
    for (image_id, known), split in tqdm(zip(kept.items(), splits, strict=True), unit='image'):
        try:
            add_image(writers[split], images[image_id], known, index)
        except (KeyError, ValueError) as error:
            raise ValueError(f'{args.relationships}, image {image_id}: {error!r}') from error
    total = sum(len(known) for known in kept.values())
    print(f'{total} of {len(rows)} relations in {len(kept)} of {len(found)} images kept')
    write_all(args, writers)


def main(argv: list[str] | None = None, prog: str = 'gclip convert visual_genome') -> int:
    """Run the command; returns the exit code."""
    args = parse_args(argv, prog)
    return exit_code(lambda: run(args), ValueError, OSError)
