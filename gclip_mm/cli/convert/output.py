"""What the converters share: the folder they write to, and writing all files of it or none."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from ...scene_graph.datasets.writer import SceneGraphWriter


def add_output(parser: argparse.ArgumentParser) -> None:
    """Add ``--out`` and ``--overwrite``."""
    parser.add_argument('--out', type=Path, required=True, help='folder to write to')
    parser.add_argument('--overwrite', action='store_true', help='replace files that are there')


def refuse_existing(args: argparse.Namespace, splits: Iterable[str]) -> None:
    """Refuse to replace files, before any work is done.

    Raises:
        FileExistsError: a target exists and ``--overwrite`` was not given.
    """
    present = [path for split in splits if (path := args.out / f'{split}.json').exists()]
    if present and not args.overwrite:
        raise FileExistsError(f'{present[0]} exists; pass --overwrite to replace it')


def write_all(args: argparse.Namespace, writers: Mapping[str, SceneGraphWriter]) -> None:
    """Write a file for each split and print a summary of it.

    Raises:
        ValueError: a split has no image; nothing is written then.
    """
    empty = [split for split, writer in writers.items() if not writer.content['images']]
    if empty:
        raise ValueError(f'no image is left in split {empty[0]!r}')
    for split, writer in writers.items():
        print(writer.write(args.out / f'{split}.json', args.overwrite))


def split_at_random(count: int, held_out: Mapping[str, int], seed: int) -> list[str]:
    """Assign images to splits at random.

    Args:
        count: number of images.
        held_out: number of images of each split except ``train``, which gets the others.
        seed: of NumPy's generator; the same seed gives the same splits.

    Returns:
        The split of each image.

    Raises:
        ValueError: no image would be left for ``train``.
    """
    if sum(held_out.values()) >= count:
        raise ValueError(f'{count} images cannot be split into {dict(held_out)} and train')
    splits = ['train'] * count
    order = iter(np.random.default_rng(seed).permutation(count).tolist())
    for name, size in held_out.items():
        for _ in range(size):
            splits[next(order)] = name
    return splits
