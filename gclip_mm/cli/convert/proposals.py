"""``gclip convert proposals``: write the proposal files of R-CNN and Fast R-CNN configs."""

from __future__ import annotations

import argparse
import copy
import os
import pickle
import sys
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmengine.config import Config
from tqdm import tqdm

from ...engine.configs import LaunchError, find_config
from ...models.felzenszwalb import felzenszwalb_boxes, require_felzenszwalb
from ...models.proposal_boxes import MODES
from ...models.selective_search import require_selective_search, selective_search
from ..arguments import add_cfg_options, new_parser

SPLITS = ('train', 'val', 'test')
METHODS = ('selective_search', 'felzenszwalb')


class MakeProposalsError(Exception):
    """A mistake that the user can correct; the message is one line."""


def build_parser(prog: str = 'gclip convert proposals') -> argparse.ArgumentParser:
    """The parser."""
    parser = new_parser(
        prog,
        'Write the proposal files that the data sets of a config name, in the format of\n'
        "MMDetection: {'folder/image.jpg': {'bboxes': (n, 4), 'scores': (n,)}}. A killed run\n"
        'continues where it was.',
        'gclip convert proposals configs/rcnn/rcnn_r18_tiny_shapescenes.py',
        'gclip convert proposals CONFIG --method felzenszwalb --max-width 320',
    )
    parser.add_argument('config', help='config whose data sets have a proposal_file')
    parser.add_argument(
        '--splits',
        nargs='+',
        choices=SPLITS,
        default=list(SPLITS),
        help='which data loaders to serve (default: all that have a proposal_file)',
    )
    parser.add_argument(
        '--method',
        choices=METHODS,
        default=METHODS[0],
        help="selective_search (default) needs OpenCV's contrib build, felzenszwalb scikit-image",
    )
    parser.add_argument('--mode', choices=MODES, default='fast', help='default: fast')
    parser.add_argument(
        '--max-num', type=int, default=2000, help='most boxes of an image (default: 2000)'
    )
    parser.add_argument(
        '--max-width',
        type=int,
        default=500,
        help='shrink wider images to this width first, in pixels (default: 500)',
    )
    parser.add_argument(
        '--workers', type=int, default=os.cpu_count() or 1, help='processes (default: all cores)'
    )
    parser.add_argument('--overwrite', action='store_true', help='replace existing files')
    add_cfg_options(parser)
    return parser


def datasets_of(
    config: str, splits: list[str], options: dict[str, Any] | None = None
) -> dict[Path, tuple[str, list[str]]]:
    """The proposal files to write: file -> (the split that names it, paths of its images).

    Raises:
        MakeProposalsError: no data set has a ``proposal_file``.
    """
    from mmdet.registry import DATASETS
    from mmdet.utils import register_all_modules

    cfg = Config.fromfile(find_config(config))
    if options:
        cfg.merge_from_dict(options)
    register_all_modules()
    wanted: dict[Path, tuple[str, list[str]]] = {}
    for split in splits:
        loader = cfg.get(f'{split}_dataloader')
        dataset_cfg = loader and loader.get('dataset')
        if not dataset_cfg or not dataset_cfg.get('proposal_file'):
            continue
        dataset_cfg = copy.deepcopy(dataset_cfg)
        path = Path(dataset_cfg.pop('proposal_file'))
        if not path.is_absolute():
            path = Path(dataset_cfg.get('data_root') or '') / path
        if path in wanted:
            continue
        # MMDetection looks up every image, those that it filters out later included.
        dataset_cfg.update(filter_cfg=None, test_mode=True, pipeline=[], lazy_init=True)
        dataset = DATASETS.build(dataset_cfg)
        wanted[path] = (split, [info['img_path'] for info in dataset.load_data_list()])
    if not wanted:
        raise MakeProposalsError(
            f'{config} has no proposal_file in the data sets of {", ".join(splits)}. '
            "Set e.g. train_dataloader.dataset.proposal_file='proposals/train.pkl'"
        )
    return wanted


def proposal_key(image: str) -> str:
    """The name under which MMDetection looks an image up: its folder and its file name."""
    path = Path(image)
    return f'{path.parent.name}/{path.name}'


def _search(job: tuple[str, dict[str, Any]]) -> tuple[str, dict[str, np.ndarray]]:
    image, options = job
    options = dict(options)
    search = _search_of(options.pop('method', METHODS[0]))
    pixels = cv2.imread(image, cv2.IMREAD_COLOR)
    if pixels is None:
        raise MakeProposalsError(f'{image} is missing or no image that OpenCV can read')
    boxes, scores = search(pixels, **options)
    return proposal_key(image), dict(bboxes=boxes, scores=scores)


def _search_of(method: str) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    return selective_search if method == 'selective_search' else felzenszwalb_boxes


def _one_thread() -> None:
    cv2.setNumThreads(1)


def write_proposals(
    out: Path, images: list[str], options: dict[str, Any], workers: int = 1, label: str = ''
) -> dict[str, dict[str, np.ndarray]]:
    """Search all images and write ``out``; the partial file of a killed run is used.

    Args:
        out: the pickle to write.
        images: paths.
        options: ``method``, one of ``METHODS``, and the keyword arguments of its function.
        workers: processes.
        label: what the progress bar says.

    Returns:
        The content of the file.

    Raises:
        MakeProposalsError: two images of one name, or an image that cannot be read.
    """
    keys = [proposal_key(image) for image in images]
    if len(set(keys)) < len(keys):
        twice = next(key for i, key in enumerate(keys) if key in keys[:i])
        raise MakeProposalsError(
            f'{twice!r} names two images: MMDetection tells proposals apart by the last folder and '
            'the file name alone'
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(out.name + '.partial')
    found = dict(_read_partial(partial, options))
    found = {key: found[key] for key in keys if key in found}
    # The last record of a killed run may be truncated, so the partial file is rewritten. The new
    # copy is written beside it, so that another kill loses nothing.
    fresh = out.with_name(out.name + '.new')
    with fresh.open('wb') as stream:
        pickle.dump(options, stream)
        for record in found.items():
            pickle.dump(record, stream)
    fresh.replace(partial)
    with partial.open('ab') as stream:
        jobs = [(i, options) for i, key in zip(images, keys, strict=True) if key not in found]
        bar = tqdm(total=len(images), initial=len(found), desc=label, unit='image')
        with bar, _Pool(min(workers, max(len(jobs), 1))) as mapped:
            for key, proposals in mapped(_search, jobs):
                found[key] = proposals
                pickle.dump((key, proposals), stream)
                stream.flush()
                bar.update()
    # In the order of the images, so that the file does not depend on the order of completion.
    result = {key: found[key] for key in keys}
    fresh.write_bytes(pickle.dumps(result))
    fresh.replace(out)
    partial.unlink()
    return result


class _Pool:
    """``imap_unordered`` of a pool of processes, or plain ``map`` for a single one."""

    def __init__(self, workers: int) -> None:
        # A forked process needs no imports. Where fork is missing, use the default start method.
        context = get_context('fork' if 'fork' in get_all_start_methods() else None)
        self.pool = context.Pool(workers, _one_thread) if workers > 1 else None

    def __enter__(self) -> Callable[..., Iterable[Any]]:
        return self.pool.imap_unordered if self.pool else map

    def __exit__(self, *_: Any) -> None:
        if self.pool:
            self.pool.terminate()


def _read_partial(
    path: Path, options: dict[str, Any]
) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    if not path.is_file():
        return
    with path.open('rb') as stream:
        try:
            if pickle.load(stream) != options:
                print(f'{path} was started with other options: starting over')
                return
            while True:
                yield pickle.load(stream)
        except (EOFError, pickle.UnpicklingError):
            return


def main(argv: list[str] | None = None, prog: str = 'gclip convert proposals') -> int:
    """Run the command; exits with 1 and one line for a mistake."""
    args = build_parser(prog).parse_args(argv)
    try:
        if args.method == 'selective_search':
            require_selective_search()
        else:
            require_felzenszwalb()
        if args.workers < 1:
            raise MakeProposalsError(f'--workers must be at least 1, got {args.workers}')
        wanted = datasets_of(args.config, args.splits, args.cfg_options)
        options = dict(
            method=args.method, mode=args.mode, max_num=args.max_num, max_width=args.max_width
        )
        for path, (split, images) in wanted.items():
            if path.exists() and not args.overwrite:
                print(f'{path} exists: kept (--overwrite replaces it)')
                continue
            label = f'Proposals {split}'
            proposals = write_proposals(path, images, options, args.workers, label)
            mean = sum(len(p['bboxes']) for p in proposals.values()) / max(len(proposals), 1)
            print(f'{path}: {len(proposals)} images, {mean:.0f} boxes each on average')
    except (MakeProposalsError, LaunchError, ImportError, FileNotFoundError, ValueError) as error:
        sys.exit(f'{prog}: {error}')
    return 0
