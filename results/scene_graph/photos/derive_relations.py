"""Derives relations among the segments of COCO photos, and writes them as two spreadsheets.

No person annotated these relations. They follow from the polygons of COCO's instances (CC BY 4.0)
by the rules of :func:`predicate_of`, so they say where things are and not what they do. They serve
to train on real photos where no annotated relations may be used; a figure on them says nothing
about VG150, PSG or Open Images.

Example:
    python results/scene_graph/photos/derive_relations.py --ann train=instances_train2017.json \
        val=instances_val2017.json --images train=train2017 val=val2017 --out data/derived
    gclip convert table --images data/derived/images --objects data/derived/objects.csv \
        --relations data/derived/relations.csv --out data/derived
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
from pathlib import Path

import cv2
import numpy as np

#: Segments closer than this share of the photo's longer side touch: COCO's polygons leave gaps.
CONTACT = 0.01
#: Each object is related to so many of its neighbours at most.
NEIGHBOURS = 3


def segment(annotation: dict, height: int, width: int) -> np.ndarray:
    """(H, W) uint8 mask of an annotation's polygons."""
    mask = np.zeros((height, width), np.uint8)
    polygons = [np.round(p).astype(np.int32).reshape(-1, 2) for p in annotation['segmentation']]
    cv2.fillPoly(mask, polygons, 1)
    return mask


def predicate_of(
    subject: np.ndarray, object_: np.ndarray, boxes: tuple[np.ndarray, np.ndarray], reach: int
) -> str | None:
    """The relation of two segments, or None.

    Segments that touch are ``in`` (nine tenths of the subject's box lie in the object's box, which
    is twice as large), ``on`` (the contact is in the lower third of the subject's box, and in the
    upper half of the object's), ``under`` (the reverse), or ``next to``. Segments that do not touch
    but are nearer than the mean side of their boxes are ``left of``, ``right of``, ``above`` or
    ``below``, by the larger offset of their centres.

    Args:
        subject, object_: (H, W) uint8 masks.
        boxes: Their boxes (4,) xyxy.
        reach: Pixels within which segments touch.
    """
    (s, o) = boxes
    kernel = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
    contact = cv2.dilate(subject, kernel) & cv2.dilate(object_, kernel)
    s_size, o_size = s[2:] - s[:2], o[2:] - o[:2]
    common = np.clip(np.minimum(s[2:], o[2:]) - np.maximum(s[:2], o[:2]), 0, None).prod()
    if contact.any():
        if common >= 0.9 * s_size.prod() and o_size.prod() >= 2 * s_size.prod():
            return 'in'
        rows = np.flatnonzero(contact.any(axis=1))
        middle = float(np.median(np.repeat(rows, np.count_nonzero(contact[rows], axis=1))))
        in_subject, in_object = (middle - s[1]) / s_size[1], (middle - o[1]) / o_size[1]
        if in_subject >= 2 / 3 and in_object <= 1 / 2:
            return 'on'
        if in_object >= 2 / 3 and in_subject <= 1 / 2:
            return 'under'
        return 'next to'
    gap = np.clip(np.maximum(s[:2], o[:2]) - np.minimum(s[2:], o[2:]), 0, None)
    if np.hypot(*gap) > (s_size.mean() + o_size.mean()) / 2:
        return None
    x, y = (o[:2] + o[2:] - s[:2] - s[2:]) / 2
    if abs(x) >= abs(y):
        return 'left of' if x > 0 else 'right of'
    return 'above' if y > 0 else 'below'


def relations_of(annotations: list[dict], height: int, width: int) -> list[tuple[int, str, int]]:
    """Relations of a photo: index of the subject, predicate, index of the object."""
    masks = [segment(a, height, width) for a in annotations]
    boxes = [np.array([x, y, x + w, y + h]) for x, y, w, h in (a['bbox'] for a in annotations)]
    centres = np.array([(box[:2] + box[2:]) / 2 for box in boxes]).reshape(-1, 2)
    reach = max(1, round(CONTACT / 2 * max(height, width)))
    found = []
    for i, centre in enumerate(centres):
        nearest = np.argsort(np.hypot(*(centres - centre).T), kind='stable')
        for j in [int(j) for j in nearest if j != i][:NEIGHBOURS]:
            predicate = predicate_of(masks[i], masks[j], (boxes[i], boxes[j]), reach)
            if predicate is not None:
                found.append((i, predicate, j))
    return found


def main() -> None:
    """Write objects.csv, relations.csv and images/ of all splits."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--ann', nargs='+', required=True, metavar='SPLIT=FILE')
    parser.add_argument('--images', nargs='+', required=True, metavar='SPLIT=FOLDER')
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--num', type=int, help='photos of each split (default: all)')
    parser.add_argument('--no-split', action='store_true', help='leave the column "split" out')
    args = parser.parse_args()
    folders = dict(value.split('=', 1) for value in args.images)
    (args.out / 'images').mkdir(parents=True, exist_ok=True)
    objects, relations = [], []
    for split, path in (value.split('=', 1) for value in args.ann):
        content = json.loads(Path(path).read_text())
        names = {category['id']: category['name'] for category in content['categories']}
        by_image: dict[int, list[dict]] = {}
        for annotation in content['annotations']:
            if not annotation['iscrowd']:
                by_image.setdefault(annotation['image_id'], []).append(annotation)
        for image in [i for i in content['images'] if i['id'] in by_image][: args.num]:
            name, found = image['file_name'], by_image[image['id']]
            shutil.copy(Path(folders[split]) / name, args.out / 'images' / name)
            for number, annotation in enumerate(found, start=1):
                x, y, w, h = annotation['bbox']
                corners = [round(v, 1) for v in (x, y, x + w, y + h)]
                objects.append([name, number, names[annotation['category_id']], *corners, split])
            for i, predicate, j in relations_of(found, image['height'], image['width']):
                relations.append([name, i + 1, predicate, j + 1, split])
    tables = {
        'objects': (['image', 'id', 'class', 'x1', 'y1', 'x2', 'y2', 'split'], objects),
        'relations': (['image', 'subject', 'predicate', 'object', 'split'], relations),
    }
    for name, (header, rows) in tables.items():
        with (args.out / f'{name}.csv').open('w', newline='') as file:
            writer = csv.writer(file)
            end = -1 if args.no_split else None
            writer.writerows(row[:end] for row in [header, *rows])
        print(f'{args.out / name}.csv: {len(rows)} rows')


if __name__ == '__main__':
    main()
