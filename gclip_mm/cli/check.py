"""``gclip check``: put a recipe on every stock config of the installed MMDetection.

Each config is loaded, gets the recipe by :func:`gclip_mm.apply_clip`, and its optimizer wrapper is
built on a toy model.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import mmdet
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.utils import ProgressBar
from torch import nn

from ..engine import apply_clip
from .arguments import new_parser

ROOT = Path(mmdet.__file__).parent / '.mim' / 'configs'


class ToyModel(nn.Module):
    """A model with the module names that layer-wise optimizer constructors expect."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.bbox_head = nn.Linear(4, 2)


def stock_configs(family: str = '**') -> list[Path]:
    """The stock configs of a family (a folder of mmdet's configs), or all of them."""
    return sorted(ROOT.glob(f'{family}/*.py' if family == '**' else f'{family}/**/*.py'))


def check(path: Path, recipe: str) -> str:
    """``'clips'``, or why the config cannot be clipped: it does not load, or trains nothing.

    Raises:
        Exception: any error of a config that loads and has an optimizer.
    """
    try:
        cfg = Config.fromfile(str(path))
    except (ImportError, FileNotFoundError) as error:
        what = str(error).replace(str(ROOT), 'mmdet::').split(',')[0]
        missing = 'mmpretrain is not installed' if 'mmpretrain' in str(error) else what
        return f'does not load: {missing}'
    if not cfg.get('optim_wrapper'):
        return 'has no optim_wrapper: a fragment, or a config for testing only'
    apply_clip(cfg, recipe)
    wrapper = build_optim_wrapper(ToyModel(), cfg.optim_wrapper)
    if wrapper.engine is None:
        raise RuntimeError(f'{path} lost its clipping')
    return 'clips'


def report(recipe: str, rows: list[tuple[str, str]]) -> Iterator[str]:
    """The lines of the Markdown page."""
    counts = Counter(outcome.split(':')[0] for _, outcome in rows)
    yield f'# Stock MMDetection {mmdet.__version__} configs under `--clip {recipe}`\n'
    yield f'Made by `python tools/analysis/check_stock_configs.py --clip {recipe}`.\n'
    yield from (f'- {count} {outcome}' for outcome, count in counts.most_common())
    yield '\nThose that cannot be clipped, and why:\n\n| config | why |\n|---|---|'
    yield from (f'| `{name}` | {outcome} |' for name, outcome in rows if outcome != 'clips')


def build_parser(prog: str = 'gclip check') -> argparse.ArgumentParser:
    """The parser."""
    parser = new_parser(
        prog,
        'Put a clipping recipe on every stock config of the installed MMDetection, and report '
        'which are clipped.',
        'gclip check --clip agc --family retinanet',
        'gclip check --clip agc --out docs/stock_configs.md',
    )
    parser.add_argument('--clip', default='agc', help='the recipe (default: agc)')
    parser.add_argument('--family', default='**', help='only this folder of mmdet configs')
    parser.add_argument('--out', type=Path, help='write a Markdown page instead of printing it')
    return parser


def parse_args(argv: list[str] | None = None, prog: str = 'gclip check') -> argparse.Namespace:
    """Parse the arguments."""
    parser = build_parser(prog)
    args = parser.parse_args(argv)
    if not stock_configs(args.family):
        parser.error(f'no stock config in {args.family!r}')
    return args


def main(argv: list[str] | None = None, prog: str = 'gclip check') -> int:
    """Run the command; returns the exit code."""
    args = parse_args(argv, prog)
    register_all_modules()
    MMLogger.get_current_instance().setLevel(logging.ERROR)
    paths = stock_configs(args.family)
    bar, rows = ProgressBar(len(paths), file=sys.stderr), []
    for path in paths:
        rows.append((path.relative_to(ROOT).as_posix(), check(path, args.clip)))
        bar.update()
    text = '\n'.join(report(args.clip, rows)) + '\n'
    if args.out:
        args.out.write_text(text)
        print(f'\nSaved {args.out}')
    else:
        print(f'\n{text}')
    return 0
