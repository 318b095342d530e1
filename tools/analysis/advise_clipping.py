"""Suggests thresholds for a config: trains it a little without clipping and looks at the gradient.

    python tools/analysis/advise_clipping.py configs/bccd/faster-rcnn_tiny_bccd.py --lr 0.16
    python tools/analysis/advise_clipping.py configs/bccd/faster-rcnn_tiny_bccd.py --lr 1.0 \\
        --reuse work_dirs/advise/faster-rcnn_tiny_bccd/stats.npz

Prints a ready config for value, norm, AGC and ZClip with the reason for each number, and writes to
``--out``: a config file for each (``norm.py``, ...), the distributions as ``distributions.png``,
everything as ``advice.json``, and the statistics as ``stats.npz``, from which advice for another
learning rate takes no training.

The rate that the statistics are gathered at is the config's, and lower if the run does not survive
it without clipping; the rate that the advice is for is ``--lr``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import textwrap
from pathlib import Path
from typing import Any

# A checkout works without being installed, and before an installed copy.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np  # noqa: E402
from mmengine.config import Config, DictAction  # noqa: E402

import gclip_mm  # noqa: E402, F401  registers what a config of this package names
from gclip_mm.analysis.advice import PROPORTIONAL, REACH, Advice, advise  # noqa: E402
from gclip_mm.analysis.gradient_stats import GradientStats, load_stats, save_stats  # noqa: E402
from gclip_mm.analysis.record import AdviceError, record_gradients  # noqa: E402
from gclip_mm.engine.launch import (  # noqa: E402
    LaunchError,
    clip_hooks,
    drop_clip_hooks,
    load_config,
    optim_wrappers,
)

TITLES = {'value': 'Value', 'norm': 'Norm', 'agc': 'AGC', 'zclip': 'ZClip'}
#: What the share of what was clipped is a share of.
OF = {'value': 'elements', 'norm': 'steps', 'agc': 'units', 'zclip': 'steps, by max_norm'}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Suggest clipping thresholds for a config, from a short run without clipping.'
    )
    parser.add_argument(
        'config', help='config file, or a stock one as mmdet::faster_rcnn/<name>.py'
    )
    parser.add_argument('--lr', type=float, help="learning rate to advise for (the config's own)")
    parser.add_argument('--iterations', type=int, default=60, help='steps to record (%(default)s)')
    parser.add_argument(
        '--record-lr', type=float, help="rate to begin recording at (the config's own)"
    )
    parser.add_argument(
        '--reach',
        type=float,
        default=REACH,
        help='share of its weights that a step may move a filter by, momentum included '
        '(%(default)s); smaller clips more',
    )
    parser.add_argument('--reuse', type=Path, help='take the statistics from this stats.npz')
    parser.add_argument('--out', type=Path, help='folder (work_dirs/advise/<config name>)')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='override settings of the config, as key=value',
    )
    args = parser.parse_args(argv)
    for name in ('lr', 'record_lr', 'reach'):
        value = getattr(args, name)
        if value is not None and not (value > 0 and np.isfinite(value)):
            parser.error(f'--{name.replace("_", "-")} must be above 0, got {value}')
    if args.iterations < 10:
        parser.error(f'--iterations must be at least 10, got {args.iterations}')
    if args.reuse is not None and args.record_lr is not None:
        parser.error('--record-lr does nothing with --reuse')
    return args


def config_text(
    advice: Advice, optim_wrapper: dict[str, Any], lr: float, base: str, hooks: str = ''
) -> str:
    """A config that trains as the base does, with the rule of the advice.

    Args:
        advice: the rule.
        optim_wrapper: the base's.
        lr: the base learning rate.
        base: what to write into ``_base_``.
        hooks: a line that gives ``custom_hooks``, where the base's cannot stay.
    """
    is_amp = 'Amp' in getattr(optim_wrapper['type'], '__name__', optim_wrapper['type'])
    kind = 'GClipAmpOptimWrapper' if is_amp else 'GClipOptimWrapper'
    clip_grad = dict(advice.clip_grad)
    old = optim_wrapper.get('clip_grad') or {}
    if old.get('type') in ('AGC', 'agc', 'adaptive') and advice.name == 'agc' and 'exclude' in old:
        clip_grad['exclude'] = list(old['exclude'])
    if optim_wrapper.get('clip_grad'):
        clip_grad = {'_delete_': True, **clip_grad}
    items = ', '.join(f'{key}={value!r}' for key, value in clip_grad.items())
    reason = textwrap.fill(advice.reason, 98, initial_indent='# ', subsequent_indent='# ')
    return (
        f'{reason}\n'
        f'_base_ = [{base!r}]\n'
        "custom_imports = dict(imports=['gclip_mm'], allow_failed_imports=False)\n"
        f'{hooks}'
        'optim_wrapper = dict(\n'
        f'    type={kind!r},\n'
        f'    optimizer=dict(lr={lr:g}),\n'
        f'    clip_grad=dict({items}),\n'
        ')\n'
    )


def hooks_without_clipping(cfg: Config) -> str:
    """The line that takes a ``GClipHook`` out: it and a wrapper that clips refuse each other."""
    if not clip_hooks(cfg):
        return ''
    rest = Config(dict(custom_hooks=list(cfg.custom_hooks)))
    drop_clip_hooks(rest)
    return f'custom_hooks = {rest.to_dict()["custom_hooks"]!r}\n'


def base_name(config: str, folder: Path) -> str:
    """How a config in the folder names the config that was given."""
    return config if '::' in config else Path(os.path.relpath(config, folder)).as_posix()


def gather(args: argparse.Namespace, cfg: Config) -> tuple[GradientStats, dict[str, Any]]:
    """The statistics, and how they came about."""
    if args.reuse is not None:
        try:
            return load_stats(args.reuse), {'reused': str(args.reuse)}
        except (OSError, ValueError) as error:
            raise AdviceError(f'--reuse: {error}') from None

    def progress(text: str) -> None:
        print(text, end='', file=sys.stderr, flush=True)

    recording = record_gradients(cfg, args.iterations, args.record_lr, progress=progress)
    progress('\n')
    how = {
        'record_lr': recording.lr,
        'steps': len(recording.stats.norm),
        'steps_not_finite': recording.nonfinite,
        'rates_that_blew_up': [{'lr': lr, 'why': why} for lr, why in recording.failed],
    }
    return recording.stats, how


def summary(stats: GradientStats) -> dict[str, Any]:
    """Percentiles of the recorded norms, for the JSON file."""
    marks = (0, 10, 50, 90, 99, 100)

    def spread(values: np.ndarray) -> dict[str, float]:
        return {f'p{q}': float(v) for q, v in zip(marks, np.percentile(values, marks), strict=True)}

    modules: dict[str, np.ndarray] = {}
    for i, name in enumerate(stats.names):
        key = name.rpartition('.')[0] or '(root)'
        modules[key] = np.hypot(modules.get(key, 0.0), stats.grad[:, i])
    return {
        'grad_norm': spread(stats.norm),
        'module_grad_norm': {name: spread(values) for name, values in modules.items()},
        'unit_grad_to_weight': spread(stats.unit_ratio),
    }


def report(advices: list[Advice], texts: dict[str, str], how: dict[str, Any]) -> str:
    """What is printed."""
    parts = []
    for failed in how.get('rates_that_blew_up', []):
        parts.append(f'Without clipping lr {failed["lr"]:g} blew up: {failed["why"]}.')
    if 'record_lr' in how:
        parts.append(f'Recorded {how["steps"]} steps at lr {how["record_lr"]:g}.')
    for advice in advices:
        share = f'{advice.clipped:.2%} of the recorded {OF[advice.name]} would have been clipped'
        title = f'{TITLES[advice.name]}: {share}'
        parts += ['', title, '-' * len(title), texts[advice.name].rstrip()]
    return '\n'.join(parts)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        cfg = load_config(args.config, args.cfg_options, None, 'none')
        stats, how = gather(args, cfg)
        wrappers = list(optim_wrappers(cfg))
        if len(wrappers) != 1:
            raise AdviceError('the config must have one optim_wrapper with an optimizer')
        wrapper = wrappers[0][1]
        optimizer = wrapper['optimizer']
        lr = args.lr if args.lr is not None else optimizer.get('lr')
        if lr is None:
            raise AdviceError('optim_wrapper.optimizer has no lr; give one with --lr')
        kind = getattr(optimizer['type'], '__name__', optimizer['type'])
        advices = advise(
            stats,
            lr,
            optimizer.get('momentum', 0.0),
            proportional=kind in PROPORTIONAL,
            reach=args.reach,
        )
    except (AdviceError, LaunchError, gclip_mm.ClipConfigError, ValueError) as error:
        print(f'advise_clipping.py: error: {error}', file=sys.stderr)
        return 1
    out = args.out or Path('work_dirs') / 'advise' / Path(cfg.filename).stem
    out.mkdir(parents=True, exist_ok=True)
    base = base_name(args.config, out)
    hooks = hooks_without_clipping(cfg)
    texts = {a.name: config_text(a, wrapper, lr, base, hooks) for a in advices}
    print(report(advices, texts, how))
    for name, text in texts.items():
        (out / f'{name}.py').write_text(text)
    save_stats(stats, out / 'stats.npz')
    content = {
        'config': args.config,
        'lr': lr,
        'optimizer': kind,
        'momentum': optimizer.get('momentum', 0.0),
        'reach': args.reach,
        **how,
        'advice': [advice._asdict() for advice in advices],
        **summary(stats),
    }
    (out / 'advice.json').write_text(json.dumps(content, indent=2) + '\n')
    from advice_picture import save_distributions

    save_distributions(stats, advices, out / 'distributions.png', f'{args.config} at lr {lr:g}')
    print(f'\nSaved to {out}: {", ".join(f"{name}.py" for name in texts)}, advice.json, '
          'distributions.png, stats.npz')  # fmt: skip
    return 0


if __name__ == '__main__':
    sys.exit(main())
