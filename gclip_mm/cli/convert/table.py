"""``gclip convert table``: convert photos and a spreadsheet of relations to scene-graph JSON."""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from ...scene_graph.datasets.writer import SceneGraphWriter
from ..arguments import add_json, exit_code, new_parser, only_json
from .output import add_output, refuse_existing, split_at_random, write_all

DESCRIPTION = """\
Convert your own photos and a spreadsheet of relations to scene-graph JSON.

A spreadsheet is saved as CSV; comma, semicolon and tab are recognised. RELATIONS has one row for
each relation, with the columns

  image        file name of the photo, relative to --images
  subject      class of the subject, such as dog
  predicate    such as sits on
  object       class of the object
  subject_x1, subject_y1, subject_x2, subject_y2, object_x1, object_y1, object_x2, object_y2
               corners of both boxes in pixels

and, if you like, "split" (train, val or test) and "scene". Boxes with the same class and the same
corners in one photo are one object.

With --objects OBJECTS the boxes are in a second table, with the columns image, id, class, x1, y1,
x2, y2. "subject" and "object" of RELATIONS are ids then, and objects and photos without a relation
are kept. Ids need to be unique within a photo only.

Writes train.json and val.json (and test.json, if the column "split" names it) and prints the
numbers that the config of the model needs."""

ENDS = ('subject', 'object')
CORNERS = ('x1', 'y1', 'x2', 'y2')
SPLITS = ('train', 'val', 'test')
_DELIMITERS = ',;\t'

Object = tuple[str, tuple[float, ...]]  # class and xyxy


@dataclass
class Photo:
    """What the tables say about a photo.

    Attributes:
        objects: class and xyxy box of each object, by its id.
        relations: subject id, predicate, object id.
        split, scene: None if the tables have no such column.
    """

    objects: dict[object, Object] = field(default_factory=dict)
    relations: list[tuple[object, str, object]] = field(default_factory=list)
    split: str | None = None
    scene: str | None = None


def read_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Rows of a table that are not empty, each with its place for error messages.

    Raises:
        ValueError: a column is missing, or a row has an empty cell in it or too many cells.
    """
    with path.open(newline='', encoding='utf-8-sig') as file:
        head = file.readline()
        delimiter = max(_DELIMITERS, key=head.count)
        file.seek(0)
        reader = csv.DictReader(file, delimiter=delimiter)
        # A spreadsheet's header often has capitals and stray blanks.
        reader.fieldnames = [name.strip().lower() for name in reader.fieldnames or []]
        missing = [name for name in columns if name not in reader.fieldnames]
        if missing:
            raise ValueError(
                f'{path} has no column {missing[0]!r}; it has {list(reader.fieldnames)} and needs '
                f'{list(columns)}'
            )
        for row in reader:
            where = f'{path}, line {reader.line_num}'
            if None in row:
                raise ValueError(f'{where}: more than {len(reader.fieldnames)} cells')
            cells = {name: (value or '').strip() for name, value in row.items()}
            if not any(cells.values()):
                continue
            empty = [name for name in columns if not cells[name]]
            if empty:
                raise ValueError(f'{where}: the cell {empty[0]!r} is empty')
            yield where, cells


def read_box(cells: Mapping[str, str], prefix: str, xywh: bool, where: str) -> tuple[float, ...]:
    """Box (x1, y1, x2, y2) of a row.

    Raises:
        ValueError: a cell is not a number, or the box has no area.
    """
    names = [f'{prefix}{corner}' for corner in CORNERS]
    values = []
    for name in names:
        try:
            value = float(cells[name])
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise ValueError(f'{where}: {name} must be a number, got {cells[name]!r}')
        values.append(value)
    x1, y1, x2, y2 = values
    if xywh:
        x2, y2 = x1 + x2, y1 + y2
    if not (x1 < x2 and y1 < y2):
        hint = '' if xywh else '; is it x, y, width, height? then pass --box-format xywh'
        raise ValueError(f'{where}: the box {", ".join(names)} = {values} has no area{hint}')
    return x1, y1, x2, y2


def read_photos(args: argparse.Namespace) -> dict[str, Photo]:
    """Photos by file name, sorted by it.

    Raises:
        ValueError: a table is malformed; the message names the line.
    """
    xywh = args.box_format == 'xywh'
    photos: dict[str, Photo] = {}
    if args.objects is not None:
        for where, cells in read_rows(args.objects, ('image', 'id', 'class', *CORNERS)):
            photo = _photo(photos, cells, where)
            if cells['id'] in photo.objects:
                raise ValueError(f'{where}: {cells["image"]} has two objects {cells["id"]!r}')
            photo.objects[cells['id']] = cells['class'], read_box(cells, '', xywh, where)
    boxes = () if args.objects else tuple(f'{end}_{corner}' for end in ENDS for corner in CORNERS)
    for where, cells in read_rows(
        args.relations, ('image', 'subject', 'predicate', 'object', *boxes)
    ):
        photo = _photo(photos, cells, where)
        ends: list[object] = []
        for end in ENDS:
            key: object = cells[end]
            if args.objects is None:
                key = cells[end], read_box(cells, f'{end}_', xywh, where)
                photo.objects[key] = key  # type: ignore[index]
            elif key not in photo.objects:
                raise ValueError(
                    f'{where}: {args.objects} has no object {key!r} in {cells["image"]}; it has '
                    f'{sorted(map(str, photo.objects))}'
                )
            ends.append(key)
        if ends[0] == ends[1]:
            raise ValueError(f'{where}: subject and object are the same object')
        relation = ends[0], cells['predicate'], ends[1]
        if relation not in photo.relations:
            photo.relations.append(relation)
    if not photos:
        raise ValueError(f'{args.relations} has no rows')
    return dict(sorted(photos.items()))


def _photo(photos: dict[str, Photo], cells: Mapping[str, str], where: str) -> Photo:
    """The photo of a row; its split and scene must be the same in all rows."""
    photo = photos.setdefault(cells['image'], Photo())
    for key in ('split', 'scene'):
        value = cells.get(key)
        if not value:
            continue
        value = value.lower() if key == 'split' else value
        if key == 'split' and value not in SPLITS:
            raise ValueError(f'{where}: split must be one of {SPLITS}, got {value!r}')
        if getattr(photo, key) not in (None, value):
            raise ValueError(
                f'{where}: {cells["image"]} has {key} {value!r} here and '
                f'{getattr(photo, key)!r} in an earlier row'
            )
        setattr(photo, key, value)
    return photo


def choose_splits(photos: Mapping[str, Photo], args: argparse.Namespace) -> list[str]:
    """Split of each photo: from the tables if they have splits, else at random.

    Raises:
        ValueError: only some photos have a split, or there is no photo for train or val.
    """
    given = [photo.split for photo in photos.values()]
    if any(given):
        without = [name for name, photo in photos.items() if photo.split is None]
        if without:
            raise ValueError(f'{without[0]} has no split, but other photos have one')
        missing = [split for split in ('train', 'val') if split not in given]
        if missing:
            raise ValueError(f'no photo has split {missing[0]!r}')
        return [str(split) for split in given]
    held_out = max(1, round(args.val_fraction * len(photos)))
    return split_at_random(len(photos), {'val': held_out}, args.seed)


def size_of(path: Path) -> tuple[int, int]:
    """Width and height of a photo as OpenCV loads it, turned by its orientation tag.

    Raises:
        FileNotFoundError: the photo does not exist.
        ValueError: the file is not a picture.
    """
    if not path.is_file():
        raise FileNotFoundError(f'{path} does not exist; --images has to name the folder')
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(0x0112, 1) >= 5  # the tag "Orientation"
    except OSError as error:
        raise ValueError(f'{path} cannot be read as a picture: {error}') from error
    return (height, width) if turned else (width, height)


def convert(args: argparse.Namespace) -> dict[str, SceneGraphWriter]:
    """Read tables and photos; returns a writer for each split."""
    photos = read_photos(args)
    splits = choose_splits(photos, args)
    classes = sorted({name for photo in photos.values() for name, _ in photo.objects.values()})
    predicates = sorted({r[1] for photo in photos.values() for r in photo.relations})
    scenes = sorted({photo.scene for photo in photos.values() if photo.scene is not None})
    writers = {
        split: SceneGraphWriter(
            classes, predicates, scenes, info=dict(description=f'{args.relations.name}, {split}')
        )
        for split in SPLITS
        if split in splits
    }
    for (name, photo), split in zip(photos.items(), splits, strict=True):
        width, height = size_of(args.images / name)
        keys = list(photo.objects)
        boxes = np.array([box for _, box in photo.objects.values()])
        most = boxes[:, 2:].max(axis=0)
        # Annotators draw a little beyond the edge; more than that is another picture or unit.
        if (most > np.multiply(1.02, (width, height)) + 1).any():
            raise ValueError(
                f'{name} has {width} x {height} pixels, but a box of it ends at '
                f'({most[0]:g}, {most[1]:g})'
            )
        writers[split].add_image(
            name,
            width,
            height,
            boxes,
            [classes.index(label) for label, _ in photo.objects.values()],
            [
                (keys.index(s), keys.index(o), predicates.index(predicate))
                for s, predicate, o in photo.relations
            ],
            scene=None if photo.scene is None else scenes.index(photo.scene),
        )
    return writers


def build_parser(prog: str = 'gclip convert table') -> argparse.ArgumentParser:
    """The parser."""
    parser = new_parser(
        prog,
        DESCRIPTION,
        'gclip convert table --images photos --relations relations.csv --out data/mine',
        'gclip convert table --images photos --objects objects.csv --relations relations.csv \\\n'
        '      --box-format xywh --out data/mine',
    )
    parser.add_argument('--images', type=Path, required=True, help='folder of the photos')
    parser.add_argument('--relations', type=Path, required=True, help='table of relations (CSV)')
    parser.add_argument('--objects', type=Path, help='table of objects (CSV)')
    parser.add_argument(
        '--box-format',
        choices=('xyxy', 'xywh'),
        default='xyxy',
        help='what x2 and y2 hold: a corner, or width and height (default: xyxy)',
    )
    parser.add_argument(
        '--val-fraction',
        type=float,
        default=0.2,
        help='share of the photos for validation, without a column "split" (default: 0.2)',
    )
    parser.add_argument('--seed', type=int, default=0, help='of the random split (default: 0)')
    add_output(parser)
    add_json(parser)
    return parser


def parse_args(
    argv: list[str] | None = None, prog: str = 'gclip convert table'
) -> argparse.Namespace:
    """Parse and check the arguments."""
    parser = build_parser(prog)
    args = parser.parse_args(argv)
    if not 0 < args.val_fraction < 1:
        parser.error(f'--val-fraction must be between 0 and 1, got {args.val_fraction}')
    return args


def run(args: argparse.Namespace) -> None:
    """Convert and write the files; a bad input leaves none of them behind.

    Raises:
        ValueError: the input is malformed.
        OSError: a file is missing, or one of the targets exists.
    """
    with only_json(args.json) as result:
        refuse_existing(args, SPLITS)
        writers = convert(args)
        write_all(args, writers)
        content = writers['train'].content
        names = {key: [entry['name'] for entry in content[key]] for key in KEYS.values()}
        for what, key in KEYS.items():
            if names[key]:
                print(f'{what}={len(names[key])}  # {", ".join(names[key])}')
        result.update(
            {split: str(args.out / f'{split}.json') for split in writers},
            **{what: len(names[key]) for what, key in KEYS.items()},
            **names,
        )


#: Keys of the model's config, and the lists they count.
KEYS = {'num_classes': 'categories', 'num_predicates': 'predicates', 'num_scenes': 'scenes'}


def main(argv: list[str] | None = None, prog: str = 'gclip convert table') -> int:
    """Run the command; returns the exit code."""
    args = parse_args(argv, prog)
    return exit_code(lambda: run(args), ValueError, OSError)
