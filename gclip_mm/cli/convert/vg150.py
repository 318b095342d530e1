"""``gclip convert vg150``: convert Visual Genome VG150 to scene-graph JSON."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ...scene_graph.boxes import box_iou
from ...scene_graph.datasets.json_file import read_json
from ...scene_graph.datasets.writer import SceneGraphWriter
from ..arguments import exit_code, new_parser

DESCRIPTION = """\
Convert Visual Genome VG150 to scene-graph JSON.

Reads the files of Xu et al. (arXiv 1701.02426), in the form that most scene-graph code uses:

- VG-SGG-with-attri.h5 (or VG-SGG.h5): boxes, labels and relations of all images
- VG-SGG-dicts-with-attri.json (or VG-SGG-dicts.json): the names
- image_data.json of Visual Genome: ids and sizes of the images

and writes train.json, val.json and test.json. The splits are the published ones (Zellers et al.,
arXiv 1711.06640): images without relations are left out, then the first 5000 of the training
split become the validation split; the test split has 26446 images. Relations that are annotated
several times stay so. Boxes are those of the loader of Scene-Graph-Benchmark (arXiv 2002.11949), to
the pixel.

Needs h5py (pip install h5py)."""


# Images of Visual Genome that the h5 file has no row for: their files were unreadable.
MISSING_IMAGES = (1592, 1722, 4616, 4617)
LONG_SIDE = 1024
TRAIN, TEST = 0, 2
_INDEX_KEYS = (
    'split',
    'img_to_first_box',
    'img_to_last_box',
    'img_to_first_rel',
    'img_to_last_rel',
)
_BOX_KEYS = (f'boxes_{LONG_SIDE}', 'labels')
_REL_KEYS = ('relationships', 'predicates')


@dataclass
class RoiDB:
    """The arrays of the h5 file. ``first`` and ``last`` are inclusive, -1 if there is none."""

    split: np.ndarray  # (I,)
    first_box: np.ndarray  # (I,)
    last_box: np.ndarray
    first_rel: np.ndarray
    last_rel: np.ndarray
    boxes: np.ndarray  # (B, 4) xyxy; the image's long side is 1024
    labels: np.ndarray  # (B,) from 1
    relations: np.ndarray  # (R, 2) indices into all boxes of the file
    predicates: np.ndarray  # (R,) from 1


def read_h5(path: Path) -> RoiDB:
    """Read and check the h5 file.

    Raises:
        ValueError: If it is cut off, lacks an array, or its arrays contradict each other.
    """
    try:
        import h5py
    except ImportError as error:
        raise SystemExit('reading VG150 needs h5py: pip install h5py') from error
    if not path.is_file():
        raise FileNotFoundError(f'{path} does not exist')
    try:
        with h5py.File(path, 'r') as file:
            missing = [k for k in (*_INDEX_KEYS, *_BOX_KEYS, *_REL_KEYS) if k not in file]
            if missing:
                raise ValueError(f'{path} has no array {missing[0]!r}; it has {sorted(file)}')
            arrays = {k: np.asarray(file[k]) for k in (*_INDEX_KEYS, *_BOX_KEYS, *_REL_KEYS)}
    except OSError as error:
        raise ValueError(f'{path} is not a readable HDF5 file, or cut off: {error}') from error

    split, first_box, last_box, first_rel, last_rel = (
        arrays[k].astype(np.int64).reshape(-1) for k in _INDEX_KEYS
    )
    db = RoiDB(
        split=split,
        first_box=first_box,
        last_box=last_box,
        first_rel=first_rel,
        last_rel=last_rel,
        boxes=corners(arrays[_BOX_KEYS[0]]),
        labels=arrays['labels'].astype(np.int64).reshape(-1),
        relations=arrays['relationships'].astype(np.int64),
        predicates=arrays['predicates'].astype(np.int64).reshape(-1),
    )
    lengths = {k: len(arrays[k]) for k in _INDEX_KEYS}
    if len(set(lengths.values())) != 1:
        raise ValueError(f'{path}: the arrays of the images differ in length: {lengths}')
    if db.boxes.shape != (len(db.labels), 4):
        raise ValueError(
            f'{path}: {len(db.labels)} labels but {_BOX_KEYS[0]} of shape {db.boxes.shape}'
        )
    if db.relations.shape != (len(db.predicates), 2):
        raise ValueError(
            f'{path}: {len(db.predicates)} predicates but relationships of shape '
            f'{db.relations.shape}'
        )
    unknown = set(np.unique(db.split)) - {TRAIN, TEST}
    if unknown:
        raise ValueError(f'{path}: split must be {TRAIN} (train) or {TEST} (test), got {unknown}')
    for what, first, last, total in (
        ('box', db.first_box, db.last_box, len(db.boxes)),
        ('rel', db.first_rel, db.last_rel, len(db.relations)),
    ):
        none = (first == -1) & (last == -1)
        bad = np.flatnonzero(~none & ((first < 0) | (last < first) | (last >= total)))
        if len(bad):
            raise ValueError(
                f'{path}: row {bad[0]} has img_to_first_{what}={first[bad[0]]}, '
                f'img_to_last_{what}={last[bad[0]]}, but there are {total}'
            )
    centred = arrays[_BOX_KEYS[0]]
    if (centred[:, 2:] <= 0).any() or (centred[:, :2] < 0).any():
        raise ValueError(f'{path}: a box has no area or a negative centre')
    return db


def corners(boxes: np.ndarray) -> np.ndarray:
    """Corners (N, 4) float64 of boxes (N, 4): centre x, centre y, width, height.

    Scene-Graph-Benchmark and the code before it store the upper left corner in the array of the
    file. Its integers truncate the half pixel of an odd size, which published tables include.
    """
    start = boxes[:, :2] - boxes[:, 2:] / 2
    if np.issubdtype(boxes.dtype, np.integer):
        start = np.trunc(start)
    return np.hstack((start, start + boxes[:, 2:])).astype(np.float64)


def read_names(path: Path) -> tuple[list[str], list[str]]:
    """Classes and predicates in the order of their 1-based indices.

    Raises:
        ValueError: If the indices are not 1, 2, 3, ...
    """
    content = read_json(path)
    names = []
    for key in ('label_to_idx', 'predicate_to_idx'):
        if not isinstance(content.get(key), dict):
            raise ValueError(f'{path} has no {key!r}; it has {sorted(content)}')
        index = {int(v): k for k, v in content[key].items()}
        if sorted(index) != list(range(1, len(content[key]) + 1)):
            raise ValueError(f'{path}: the indices in {key!r} are not 1..{len(content[key])}')
        names.append([index[i] for i in sorted(index)])
    return names[0], names[1]


def read_images(path: Path, num_rows: int) -> list[dict]:
    """The image of each row of the h5 file.

    Raises:
        ValueError: If the images do not fit the rows.
    """
    images = read_json(path, expect=list)
    for number, image in enumerate(images):
        missing = [k for k in ('image_id', 'width', 'height') if k not in image]
        if missing:
            raise ValueError(f'{path}: entry {number} has no {missing[0]!r}')
    images = [image for image in images if image['image_id'] not in MISSING_IMAGES]
    if len(images) != num_rows:
        raise ValueError(
            f'{path} has {len(images)} images besides the missing ones {MISSING_IMAGES}, but the '
            f'h5 file has {num_rows} rows: the files do not belong together'
        )
    return images


def split_rows(db: RoiDB, num_val: int, keep_empty: bool) -> dict[str, np.ndarray]:
    """Rows of each split."""
    has_boxes, has_relations = db.first_box >= 0, db.first_rel >= 0
    train = np.flatnonzero((db.split == TRAIN) & has_boxes & has_relations)
    rows = dict(
        train=train[num_val:],
        val=train[:num_val],
        test=np.flatnonzero((db.split == TEST) & has_boxes & has_relations),
    )
    if keep_empty:
        empty = np.flatnonzero((db.split == TRAIN) & has_boxes & ~has_relations)
        rows['train'] = np.sort(np.concatenate((rows['train'], empty)))
    return rows


def add_row(writer: SceneGraphWriter, db: RoiDB, row: int, image: dict, overlapping: bool) -> None:
    """Add an image of the h5 file.

    Raises:
        ValueError: If its relations leave its boxes, or a label is unknown.
    """
    boxes = slice(db.first_box[row], db.last_box[row] + 1)
    width, height = image['width'], image['height']
    # Clipped to the last pixel, as Scene-Graph-Benchmark does.
    scaled = db.boxes[boxes] * (max(width, height) / LONG_SIDE)
    xyxy = np.clip(scaled, 0, np.array([width, height, width, height]) - 1)
    writer.repaired['boxes clipped to the image'] += int((xyxy != scaled).any(axis=1).sum())
    relations = np.zeros((0, 3), np.int64)
    if db.first_rel[row] >= 0:
        rels = slice(db.first_rel[row], db.last_rel[row] + 1)
        relations = np.column_stack((db.relations[rels] - boxes.start, db.predicates[rels] - 1))
    if overlapping and len(relations):
        # At the scale of the file, before clipping, and with the last pixel: boxes overlap that
        # share an edge.
        stored = db.boxes[boxes]
        touching = box_iou(stored, stored, True)[relations[:, 0], relations[:, 1]] > 0
        relations = relations[touching]
        if not len(relations):
            return
    writer.add_image(
        f'{image["image_id"]}.jpg',
        width,
        height,
        xyxy,
        db.labels[boxes] - 1,
        relations,
        image_id=image['image_id'],
    )


def check_image(folder: Path, image: dict) -> None:
    """Take the size from the image's file; some in image_data.json are wrong."""
    from PIL import Image

    path = folder / f'{image["image_id"]}.jpg'
    if not path.is_file():
        raise FileNotFoundError(f'{path} does not exist')
    with Image.open(path) as file:
        image['width'], image['height'] = file.size


def build_parser(prog: str = 'gclip convert vg150') -> argparse.ArgumentParser:
    """The parser."""
    parser = new_parser(
        prog,
        DESCRIPTION,
        'gclip convert vg150 --h5 VG-SGG-with-attri.h5 --dicts VG-SGG-dicts-with-attri.json \\\n'
        '      --image-data image_data.json --out data/vg150',
    )
    parser.add_argument('--h5', type=Path, required=True, help='VG-SGG-with-attri.h5')
    parser.add_argument('--dicts', type=Path, required=True, help='VG-SGG-dicts-with-attri.json')
    parser.add_argument('--image-data', type=Path, required=True, help='image_data.json')
    parser.add_argument('--out', type=Path, required=True, help='folder to write to')
    parser.add_argument(
        '--images',
        type=Path,
        help='folder of the images: check that all are there, and take their sizes from the files',
    )
    parser.add_argument('--num-val', type=int, default=5000, help='images for validation')
    parser.add_argument(
        '--keep-empty',
        action='store_true',
        help='keep images without relations in train.json, to train a detector on',
    )
    parser.add_argument(
        '--overlapping-only',
        action='store_true',
        help='leave relations between boxes that do not overlap out of train.json, and images '
        'left without any, as Neural Motifs trains',
    )
    parser.add_argument('--overwrite', action='store_true', help='replace files that are there')
    return parser


def parse_args(
    argv: list[str] | None = None, prog: str = 'gclip convert vg150'
) -> argparse.Namespace:
    """Parse and check the arguments."""
    parser = build_parser(prog)
    args = parser.parse_args(argv)
    if args.num_val < 0:
        parser.error(f'--num-val must not be negative, got {args.num_val}')
    return args


def run(args: argparse.Namespace) -> None:
    """Convert and write the files; a bad input leaves none of them behind.

    Raises:
        ValueError: the input is malformed.
        OSError: a file is missing, or one of the targets exists.
    """
    targets = {split: args.out / f'{split}.json' for split in ('train', 'val', 'test')}
    present = [str(path) for path in targets.values() if path.exists()]
    if present and not args.overwrite:
        raise FileExistsError(f'{present[0]} exists; pass --overwrite to replace it')
    db = read_h5(args.h5)
    classes, predicates = read_names(args.dicts)
    images = read_images(args.image_data, len(db.split))
    rows = split_rows(db, args.num_val, args.keep_empty)
    empty = [split for split, indices in rows.items() if not len(indices)]
    if empty:
        raise ValueError(
            f'no image is left for {empty[0]}.json; of {len(db.split)} rows, '
            f'{ {split: len(indices) for split, indices in rows.items()} }'
        )
    writers = {}
    for split, indices in rows.items():
        writers[split] = SceneGraphWriter(
            classes,
            predicates,
            info=dict(description=f'Visual Genome VG150, {split}', convention='vg150'),
        )
        for row in tqdm(indices.tolist(), desc=split, unit='image', mininterval=0.5):
            if args.images is not None:
                check_image(args.images, images[row])
            try:
                add_row(
                    writers[split],
                    db,
                    row,
                    images[row],
                    overlapping=args.overlapping_only and split == 'train',
                )
            except ValueError as error:
                raise ValueError(f'{args.h5}, row {row}: {error}') from error
    # All are read before any is written: a bad row leaves no half of the data set behind.
    for split, writer in writers.items():
        print(writer.write(targets[split], args.overwrite))


def main(argv: list[str] | None = None, prog: str = 'gclip convert vg150') -> int:
    """Run the command; returns the exit code."""
    args = parse_args(argv, prog)
    return exit_code(lambda: run(args), ValueError, OSError)
