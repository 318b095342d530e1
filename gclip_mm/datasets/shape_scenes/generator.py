"""Writes ShapeScenes to disk atomically."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
from filelock import FileLock
from tqdm import tqdm

from .sampling import SPLITS, draw_sample
from .vocabulary import CLASSES, PREDICATES, SCENES

# Increment when the same parameters would give other files than before.
FORMAT = 1
MARKER = 'shape_scenes.json'
JPEG_QUALITY = 92
MIN_SIDE, MAX_SIDE = 64, 2048


@dataclass(frozen=True)
class ShapeScenesParams:
    """Parameters of a ShapeScenes data set; equal parameters give equal files.

    Args:
        num_train (int): Pictures in the training split. Defaults to 800.
        num_val (int): Pictures in the validation split. Defaults to 200.
        image_size (tuple[int, int]): Width and height in pixels. Defaults to (160, 128).
        seed (int): Defaults to 0.
        long_tail (float, optional): At least 1: how many times more often the first predicate of
            ``LONG_TAIL_ORDER`` is annotated than the last, on top of ``ANNOTATED_SHARE``; those
            between decrease geometrically. The pictures do not change. Defaults to None, no tail.

    Raises:
        ValueError: A count below 1, a side outside [64, 2048], a negative seed or a
            ``long_tail`` below 1.
    """

    num_train: int = 800
    num_val: int = 200
    image_size: tuple[int, int] = (160, 128)
    seed: int = 0
    long_tail: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, 'image_size', tuple(self.image_size))
        for key, low in (('num_train', 1), ('num_val', 1), ('seed', 0)):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise ValueError(f'{key} must be an integer of at least {low}, got {value!r}')
        if len(self.image_size) != 2 or not all(
            isinstance(side, int) and MIN_SIDE <= side <= MAX_SIDE for side in self.image_size
        ):
            raise ValueError(
                f'image_size must be (width, height), two integers in [{MIN_SIDE}, {MAX_SIDE}], '
                f'got {self.image_size!r}'
            )

        if self.long_tail is not None and not 1 <= self.long_tail < math.inf:
            raise ValueError(f'long_tail must be None or at least 1, got {self.long_tail!r}')

    def count(self, split: str) -> int:
        return {'train': self.num_train, 'val': self.num_val}[split]


def generate(
    out: str | Path,
    params: ShapeScenesParams | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Generate a ShapeScenes data set at ``out``, or reuse an existing one.

    Files are written to a folder beside ``out``, which one rename then moves to ``out``. A killed
    run therefore leaves no incomplete data set at ``out``. Processes that call this at the same
    time with the same ``out`` wait for the first one and reuse its files.

    Args:
        out (str | Path): Folder of the data set.
        params (ShapeScenesParams, optional): What to draw. Defaults to ``ShapeScenesParams()``.
        overwrite (bool): Draw again if ``out`` holds a ShapeScenes data set with other parameters
            or a damaged one. A folder with any other content is never changed.
        progress (bool): Show a progress bar.

    Returns:
        Path: ``out``.

    Raises:
        FileExistsError: ``out`` holds something other than the requested data set.
    """
    out, params = Path(out), params or ShapeScenesParams()
    # The rename is the last step of a run, so reuse needs neither the lock nor write permission.
    if out.is_dir() and _mismatch(out, params) is None:
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(out.parent / f'.{out.name}.lock'):
        if out.exists():
            why = _mismatch(out, params)
            if why is None:  # another process made it while this one waited
                return out
            if not (out / MARKER).is_file() and not _is_empty(out):
                raise FileExistsError(
                    f'{out} {why}, so it is left unchanged; choose another folder, or move it away'
                )
            if not overwrite and not _is_empty(out):
                raise FileExistsError(
                    f'{out} {why}; choose another folder, or draw it again with '
                    f'`python -m gclip_mm.datasets.shape_scenes --overwrite {_flags(out, params)}`'
                )
        partial, old = (out.parent / f'.{out.name}.{end}' for end in ('partial', 'old'))
        for leftover in (partial, old):  # from a run that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        _write(partial, params, progress)
        if out.exists():
            out.rename(old)
        partial.rename(out)
        shutil.rmtree(old, ignore_errors=True)
    return out


def _flags(out: Path, params: ShapeScenesParams) -> str:
    width, height = params.image_size
    tail = '' if params.long_tail is None else f' --long-tail {params.long_tail}'
    return (
        f'--out {out} --seed {params.seed} --train {params.num_train} --val {params.num_val} '
        f'--size {width} {height}{tail}'
    )


def _is_empty(out: Path) -> bool:
    return out.is_dir() and not any(out.iterdir())


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _recipe(params: ShapeScenesParams) -> dict[str, Any]:
    recipe = {'format': FORMAT, **asdict(params), 'image_size': list(params.image_size)}
    if params.long_tail is None:
        del recipe['long_tail']  # as in data sets that were drawn before the key existed
    return recipe


def _mismatch(out: Path, params: ShapeScenesParams) -> str | None:
    """Why ``out`` is not the data set with these parameters; None if it is."""
    try:
        marker = json.loads((out / MARKER).read_text())
        found, sums = dict(marker['recipe']), dict(marker['sha256'])
    except FileNotFoundError:
        return 'is not a ShapeScenes data set'
    except (ValueError, KeyError, TypeError, NotADirectoryError):
        return f'has a damaged {MARKER}'
    wanted = _recipe(params)
    keys = dict.fromkeys((*wanted, *found))
    differing = [key for key in keys if found.get(key) != wanted.get(key)]
    if differing:
        return 'holds ShapeScenes with ' + ', '.join(
            f'{key}={found.get(key)} (requested: {wanted.get(key)})' for key in differing
        )
    for name, checksum in sums.items():
        if not (out / name).is_file() or _sha256(out / name) != checksum:
            return f'is damaged: {name} is missing or has another checksum'
    for split in SPLITS:
        pictures = len(list((out / split).glob('*.jpg')))
        if pictures != params.count(split):
            return f'is damaged: {split}/ has {pictures} of {params.count(split)} pictures'
    return None


def _write(folder: Path, params: ShapeScenesParams, progress: bool) -> None:
    (folder / 'annotations').mkdir(parents=True)
    sums = {}
    for split in SPLITS:
        (folder / split).mkdir()
        numbers: Iterable[int] = range(params.count(split))
        if progress:
            numbers = tqdm(
                numbers, desc=f'Drawing ShapeScenes {split}', unit='image', mininterval=0.5
            )
        name = f'annotations/{split}.json'
        content = _write_split(folder, split, numbers, params)
        (folder / name).write_text(json.dumps(content, separators=(',', ':')))
        sums[name] = _sha256(folder / name)
    marker = {'recipe': _recipe(params), 'sha256': sums, 'opencv': cv2.__version__}
    (folder / MARKER).write_text(json.dumps(marker, indent=1))


def _write_split(
    folder: Path, split: str, numbers: Iterable[int], params: ShapeScenesParams
) -> dict[str, Any]:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    relations: list[dict[str, int]] = []
    width, height = params.image_size
    for image_id in numbers:
        sample = draw_sample(params.seed, split, image_id, params.image_size, params.long_tail)
        name = f'{image_id:06d}.jpg'
        path = folder / split / name
        quality = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
        if not cv2.imwrite(str(path), sample.image, quality):
            raise OSError(f'could not write {path}')
        images.append(
            dict(id=image_id, file_name=name, width=width, height=height, scene=sample.scene)
        )
        first = len(annotations)
        for number, obj in enumerate(sample.objects, start=first):
            annotations.append({'id': number, 'image_id': image_id, **obj})
        for subject, other, predicate in sample.relations:
            relations.append(
                dict(
                    image_id=image_id,
                    subject_id=first + subject,
                    object_id=first + other,
                    predicate_id=predicate,
                )
            )
    return {
        'info': {'description': 'ShapeScenes', 'split': split, **_recipe(params)},
        'images': images,
        'annotations': annotations,
        'categories': _named(CLASSES, first_id=1),
        'predicates': _named(PREDICATES),
        'scenes': _named(SCENES),
        'relations': relations,
    }


def _named(words: tuple[str, ...], first_id: int = 0) -> list[dict[str, Any]]:
    return [{'id': number, 'name': word} for number, word in enumerate(words, start=first_id)]
