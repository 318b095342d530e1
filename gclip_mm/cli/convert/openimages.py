"""``gclip convert openimages``: convert Open Images visual relationships to scene-graph JSON."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from ...scene_graph.datasets.json_file import read_json
from ...scene_graph.datasets.writer import SceneGraphWriter
from ..arguments import exit_code, new_parser

DESCRIPTION = """\
Convert Open Images visual relationships (arXiv 1811.00982) to scene-graph JSON.

"csv" reads the official files of the 2018 and 2019 challenges and of Open Images V4 to V7, all
splits at once, so that they share their classes: one CSV of relationships a split
(challenge-2018-train-vrd.csv, oidv6-train-annotations-vrd.csv, ...) and the class descriptions.
The boxes are the ones that are related; equal ones with equal classes are one object. Rows with
the relationship "is" give an object an attribute, not another object: they are left out.
--boxes adds the other boxes of these images from the CSV of boxes of a split
(oidv6-train-annotations-bbox.csv, ...), if their class occurs in a relationship; boxes of groups
are marked as crowds. A detector that is trained without them learns them as background.

"json" reads the processed files of Zhang et al. (arXiv 1903.02728) and code after them:
vrd-{train,val,test}-anno.json and categories_dict.json."""


ATTRIBUTE = 'is'
# The challenge files and the later releases name the last column differently.
_PREDICATE_COLUMNS = ('RelationLabel', 'RelationshipLabel')
_COLUMNS = (
    'ImageID',
    'LabelName1',
    'LabelName2',
    *('XMin1', 'XMax1', 'YMin1', 'YMax1'),
    *('XMin2', 'XMax2', 'YMin2', 'YMax2'),
)
_HEADERS = {'LabelName', 'id'}  # first cell of the descriptions, where they have a header
_BOX_COLUMNS = ('ImageID', 'LabelName', 'XMin', 'XMax', 'YMin', 'YMax', 'IsGroupOf')
#: Decimals in which two boxes of the CSV files are equal.
_DECIMALS = 6
Object = tuple[str, tuple[float, float, float, float]]  # class id and relative xyxy box
Relation = tuple[Object, Object, str]


def read_descriptions(path: Path) -> dict[str, str]:
    """Names of the classes by their ids (/m/...).

    Raises:
        ValueError: If a row is not "id,name".
    """
    names = {}
    with path.open(newline='', encoding='utf-8') as file:
        for number, row in enumerate(csv.reader(file), start=1):
            if len(row) != 2:
                raise ValueError(f'{path}, line {number}: expected "id,name", got {row}')
            if not (number == 1 and row[0] in _HEADERS):
                names[row[0]] = row[1]
    return names


def read_rows(path: Path) -> Iterator[tuple[str, Relation]]:
    """(image id, relation) of each row that is not an attribute.

    Raises:
        ValueError: If a column is missing, or a row is cut off or has no valid box.
    """
    with path.open(newline='', encoding='utf-8') as file:
        reader = csv.DictReader(file)
        header = reader.fieldnames or []
        predicate_column = next((c for c in _PREDICATE_COLUMNS if c in header), None)
        missing = [c for c in _COLUMNS if c not in header]
        if predicate_column is None or missing:
            wanted = missing[0] if missing else ' or '.join(_PREDICATE_COLUMNS)
            raise ValueError(f'{path} has no column {wanted!r}; its columns are {header}')
        for row in reader:
            where = f'{path}, line {reader.line_num}'
            if None in row or any(row[c] in (None, '') for c in (*_COLUMNS, predicate_column)):
                raise ValueError(f'{where}: {len(header)} values expected; is the file cut off?')
            if row[predicate_column] == ATTRIBUTE:
                continue
            ends: list[Object] = []
            for end in '12':
                cells = [row[key + end] for key in ('XMin', 'YMin', 'XMax', 'YMax')]
                box = read_box(cells, where)
                ends.append((row[f'LabelName{end}'], box))
            yield row['ImageID'], (ends[0], ends[1], row[predicate_column])


def read_boxes(path: Path, images: Container[str]) -> dict[str, list[tuple[Object, bool]]]:
    """Boxes of some images from a CSV of boxes, each with whether it is of a group.

    Raises:
        ValueError: If a column is missing, or a row has no valid box.
    """
    found: dict[str, list[tuple[Object, bool]]] = {}
    with path.open(newline='', encoding='utf-8') as file:
        reader = csv.DictReader(file)
        missing = [c for c in _BOX_COLUMNS if c not in (reader.fieldnames or [])]
        if missing:
            raise ValueError(f'{path} has no column {missing[0]!r}; it has {reader.fieldnames}')
        for row in tqdm(reader, desc=f'{path.name}: rows', unit='row'):
            if row['ImageID'] not in images:
                continue
            where = f'{path}, line {reader.line_num}'
            box = read_box([row[key] for key in ('XMin', 'YMin', 'XMax', 'YMax')], where)
            group = row['IsGroupOf'] == '1'
            found.setdefault(row['ImageID'], []).append(((row['LabelName'], box), group))
    return found


def read_box(cells: Sequence[str], where: str) -> tuple[float, float, float, float]:
    """Relative box (x1, y1, x2, y2) of a row.

    Raises:
        ValueError: If a cell is not a number, or the box is not within [0, 1].
    """
    try:
        x1, y1, x2, y2 = map(float, cells)
    except (TypeError, ValueError) as error:
        raise ValueError(f'{where}: {error}') from error
    if not (0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1):
        raise ValueError(f'{where}: {(x1, y1, x2, y2)} is not a box within [0, 1]')
    return x1, y1, x2, y2


def add_unrelated(
    objects: list[Object], boxes: Sequence[tuple[Object, bool]], class_ids: Container[str]
) -> list[bool]:
    """Append the boxes that are no object yet, in place; returns which objects are groups."""
    known = {(label, tuple(np.round(box, _DECIMALS))) for label, box in objects}
    groups = [False] * len(objects)
    for (label, box), group in boxes:
        key = label, tuple(np.round(box, _DECIMALS))
        if label in class_ids and key not in known:
            known.add(key)
            objects.append((label, box))
            groups.append(group)
    return groups


def convert_csv(args: argparse.Namespace) -> dict[str, SceneGraphWriter]:
    """Read the official CSV files; returns a writer for each split."""
    names = read_descriptions(args.classes)
    splits: dict[str, dict[str, list[Relation]]] = {}
    for split, path in args.vrd.items():
        images: dict[str, list[Relation]] = {}
        for image_id, relation in tqdm(read_rows(path), desc=f'{split}: rows', unit='row'):
            images.setdefault(image_id, []).append(relation)
        splits[split] = images
    relations = [r for images in splits.values() for rows in images.values() for r in rows]
    class_ids = sorted({end[0] for r in relations for end in r[:2]})
    unknown = [class_id for class_id in class_ids if class_id not in names]
    if unknown:
        raise ValueError(f'{args.classes} does not describe {unknown[0]!r}, which {args.vrd} uses')
    predicates = sorted({r[2] for r in relations})
    writers = {}
    for split, images in splits.items():
        boxes = read_boxes(args.boxes[split], images) if split in args.boxes else {}
        writers[split] = new_writer(split, [names[c] for c in class_ids], predicates)
        for image_id in tqdm(sorted(images), desc=f'{split}: images', unit='image'):
            file_name = f'{args.prefix.format(split=split)}{image_id}.jpg'
            path = args.images / file_name
            if not path.is_file():
                if not args.skip_missing:
                    raise FileNotFoundError(
                        f'{path} does not exist; pass --skip-missing to leave such images out'
                    )
                writers[split].repaired['images left out, for their files are missing'] += 1
                continue
            with Image.open(path) as image:
                width, height = image.size
            # A dict keeps each object, and each triplet, once and in order.
            triplets = list(dict.fromkeys(images[image_id]))
            objects = list(dict.fromkeys(end for r in triplets for end in r[:2]))
            groups = add_unrelated(objects, boxes.get(image_id, ()), class_ids)
            writers[split].add_image(
                file_name,
                width,
                height,
                np.array([o[1] for o in objects]) * [width, height, width, height],
                np.array([class_ids.index(o[0]) for o in objects]),
                np.array(
                    [
                        (objects.index(r[0]), objects.index(r[1]), predicates.index(r[2]))
                        for r in triplets
                    ]
                ),
                crowd=groups,
            )
    return writers


def convert_json(args: argparse.Namespace) -> dict[str, SceneGraphWriter]:
    """Read ``vrd-*-anno.json``; returns a writer for each split."""
    categories = read_json(args.categories)
    for key in ('obj', 'rel'):
        if not isinstance(categories.get(key), list):
            raise ValueError(f'{args.categories} has no list {key!r}; it has {sorted(categories)}')
    writers = {}
    for split, path in args.vrd.items():
        writer = writers[split] = new_writer(split, categories['obj'], categories['rel'])
        entries = read_json(path, expect=list)
        for number, entry in enumerate(tqdm(entries, desc=split, unit='image')):
            missing = [
                k for k in ('bbox', 'det_labels', 'rel', 'img_size', 'img_fn') if k not in entry
            ]
            if missing:
                raise ValueError(f'{path}: entry {number} has no {missing[0]!r}')
            if not entry['rel'] or not entry['bbox']:
                writer.repaired['images without relations left out'] += 1
                continue
            try:
                width, height = entry['img_size']
                writer.add_image(
                    f'{args.prefix.format(split=split)}{entry["img_fn"]}.jpg',
                    width,
                    height,
                    entry['bbox'],
                    entry['det_labels'],
                    entry['rel'],
                )
            except (ValueError, TypeError) as error:
                raise ValueError(f'{path}, entry {number}: {error}') from error
    return writers


def new_writer(split: str, classes: list[str], predicates: list[str]) -> SceneGraphWriter:
    """A writer for one split."""
    info = dict(description=f'Open Images visual relationships, {split}', convention='openimages')
    return SceneGraphWriter(classes, predicates, info=info)


def build_parser(prog: str = 'gclip convert openimages') -> argparse.ArgumentParser:
    """The parser."""
    parser = new_parser(
        prog,
        DESCRIPTION,
        'gclip convert openimages csv --images data/openimages \\\n'
        '      --vrd train=oidv6-train-annotations-vrd.csv val=validation-annotations-vrd.csv \\\n'
        '      --classes oidv6-class-descriptions-boxable.csv --out data/openimages_vrd',
        'gclip convert openimages json --categories categories_dict.json \\\n'
        '      --vrd train=vrd-train-anno.json test=vrd-test-anno.json --out data/openimages_vrd',
    )
    formats = parser.add_subparsers(dest='format', required=True)
    official = formats.add_parser('csv', help='the official CSV files')
    official.add_argument(
        '--classes', type=Path, required=True, help='class descriptions, a CSV of id and name'
    )
    official.add_argument(
        '--images', type=Path, required=True, help='folder of the images, whose sizes are needed'
    )
    official.add_argument(
        '--skip-missing', action='store_true', help='leave out images whose file is not there'
    )
    official.add_argument(
        '--boxes', nargs='+', default=[], metavar='SPLIT=FILE', help='boxes of a split (CSV)'
    )
    official.set_defaults(convert=convert_csv)
    processed = formats.add_parser('json', help='vrd-*-anno.json')
    processed.add_argument('--categories', type=Path, required=True, help='categories_dict.json')
    processed.set_defaults(convert=convert_json)
    for sub in (official, processed):
        sub.add_argument(
            '--vrd', nargs='+', required=True, metavar='SPLIT=FILE', help='relationships of a split'
        )
        sub.add_argument('--out', type=Path, required=True, help='folder to write to')
        sub.add_argument(
            '--prefix',
            default='',
            help='what precedes the name of an image, such as "{split}/" for a folder a split',
        )
        sub.add_argument('--overwrite', action='store_true', help='replace files that are there')
    return parser


def parse_args(
    argv: list[str] | None = None, prog: str = 'gclip convert openimages'
) -> argparse.Namespace:
    """Parse and check the arguments."""
    parser = build_parser(prog)
    args = parser.parse_args(argv)
    args.vrd = _splits(parser, '--vrd', args.vrd)
    if args.format == 'csv':
        args.boxes = _splits(parser, '--boxes', args.boxes)
        unknown = sorted(set(args.boxes) - set(args.vrd))
        if unknown:
            parser.error(f'--boxes names the split {unknown[0]!r}, which --vrd does not name')
    return args


def _splits(parser: argparse.ArgumentParser, flag: str, values: list[str]) -> Mapping[str, Path]:
    splits = {}
    for value in values:
        split, found, path = value.partition('=')
        if not found or not split or not path or split in splits:
            parser.error(f'{flag} wants SPLIT=FILE, each split once, got {value!r}')
        splits[split] = Path(path)
    return splits


def run(args: argparse.Namespace) -> None:
    """Convert and write the files; a bad input leaves none of them behind.

    Raises:
        ValueError: the input is malformed.
        OSError: a file is missing, or one of the targets exists.
    """
    targets = {split: args.out / f'{split}.json' for split in args.vrd}
    present = [str(path) for path in targets.values() if path.exists()]
    if present and not args.overwrite:
        raise FileExistsError(f'{present[0]} exists; pass --overwrite to replace it')
    writers = args.convert(args)
    empty = [split for split, writer in writers.items() if not writer.content['images']]
    if empty:
        raise ValueError(f'no image with relations is left in split {empty[0]!r}')
    for split, writer in writers.items():
        print(writer.write(targets[split], args.overwrite))


def main(argv: list[str] | None = None, prog: str = 'gclip convert openimages') -> int:
    """Run the command; returns the exit code."""
    args = parse_args(argv, prog)
    return exit_code(lambda: run(args), ValueError, OSError)
