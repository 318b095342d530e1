"""Put a clipping recipe on every stock config of the installed MMDetection and say what came of it.

Each config is loaded, given the recipe by ``gclip_mm.apply_clip``, and its optimizer wrapper is
built on a toy model. Example::

    python tools/analysis/check_stock_configs.py --clip agc --out docs/stock_configs.md
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import mmdet  # noqa: E402
from mmdet.utils import register_all_modules  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.logging import MMLogger  # noqa: E402
from mmengine.optim import build_optim_wrapper  # noqa: E402
from mmengine.utils import ProgressBar  # noqa: E402
from torch import nn  # noqa: E402

import gclip_mm  # noqa: E402

ROOT = Path(mmdet.__file__).parent / '.mim' / 'configs'


class ToyModel(nn.Module):
    """Has the module names that constructors with layer-wise settings look for."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.bbox_head = nn.Linear(4, 2)


def stock_configs(family: str = '**') -> list[Path]:
    """The stock configs of a family (a folder of mmdet's configs), or all of them."""
    return sorted(ROOT.glob(f'{family}/*.py' if family == '**' else f'{family}/**/*.py'))


def check(path: Path, recipe: str) -> str:
    """``'clips'``, or why this config cannot be clipped: it does not load, or it trains nothing.

    Raises:
        Exception: whatever goes wrong although the config loads and has an optimizer.
    """
    try:
        cfg = Config.fromfile(str(path))
    except (ImportError, FileNotFoundError) as error:
        what = str(error).replace(str(ROOT), 'mmdet::').split(',')[0]
        missing = 'mmpretrain is not installed' if 'mmpretrain' in str(error) else what
        return f'does not load: {missing}'
    if not cfg.get('optim_wrapper'):
        return 'has no optim_wrapper: a fragment, or a config for testing only'
    gclip_mm.apply_clip(cfg, recipe)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--clip', default='agc', help='the recipe (default: agc)')
    parser.add_argument('--family', default='**', help='only this folder of mmdet configs')
    parser.add_argument('--out', type=Path, help='write a Markdown page instead of printing it')
    args = parser.parse_args()
    register_all_modules()
    MMLogger.get_current_instance().setLevel(logging.ERROR)
    paths = stock_configs(args.family)
    if not paths:
        parser.error(f'no stock config in {args.family!r}')
    bar, rows = ProgressBar(len(paths), file=sys.stderr), []
    for path in paths:
        rows.append((path.relative_to(ROOT).as_posix(), check(path, args.clip)))
        bar.update()
    text = '\n'.join(report(args.clip, rows)) + '\n'
    if args.out:
        args.out.write_text(text)
    else:
        print(f'\n{text}')


if __name__ == '__main__':
    main()
