"""Command line of ShapeScenes: ``python -m gclip_mm.datasets.shape_scenes --help``."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from json import loads
from pathlib import Path

from .generator import ShapeScenesParams, generate
from .sampling import SPLITS


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the arguments."""
    default = ShapeScenesParams()
    parser = argparse.ArgumentParser(
        prog='python -m gclip_mm.datasets.shape_scenes',
        description='Draw the ShapeScenes data set: colored shapes on textured backgrounds, with '
        'boxes, masks, relations and scene classes in COCO JSON. An existing data set with '
        'the same options is reused.',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument('--out', type=Path, default=Path('data/shape_scenes'), help='folder')
    parser.add_argument('--seed', type=int, default=default.seed, help='random seed')
    parser.add_argument('--train', type=int, default=default.num_train, help='training pictures')
    parser.add_argument('--val', type=int, default=default.num_val, help='validation pictures')
    parser.add_argument(
        '--size',
        type=int,
        nargs=2,
        metavar=('W', 'H'),
        default=default.image_size,
        help='picture size in pixels',
    )
    parser.add_argument(
        '--long-tail',
        type=float,
        default=default.long_tail,
        metavar='RATIO',
        help='annotate the first predicate RATIO times as often as the last',
    )
    parser.add_argument(
        '--overwrite',
        action='store_true',
        help='draw again if --out holds ShapeScenes with other options, or a damaged data set',
    )
    return parser.parse_args(argv)


def _summary(out: Path) -> str:
    lines = []
    for split in SPLITS:
        data = loads((out / 'annotations' / f'{split}.json').read_text())
        lines.append(
            f'{out / "annotations" / split}.json: {len(data["images"])} images, '
            f'{len(data["annotations"])} objects, {len(data["relations"])} relations'
        )
        counts = Counter(relation['predicate_id'] for relation in data['relations'])
        lines.append('  ' + ', '.join(f'{p["name"]} {counts[p["id"]]}' for p in data['predicates']))
    return '\n'.join(lines)


def main(argv: list[str] | None = None) -> int:
    """Draw the pictures; returns the exit code."""
    args = parse_args(argv)
    try:
        width, height = args.size
        params = ShapeScenesParams(args.train, args.val, (width, height), args.seed, args.long_tail)
        out = generate(args.out, params, overwrite=args.overwrite)
    except (ValueError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    print(_summary(out))
    return 0


if __name__ == '__main__':
    sys.exit(main())
