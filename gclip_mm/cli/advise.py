"""``gclip advise``: which clipping for a config, from a short run without clipping."""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config

from ..analysis.advice import PROPORTIONAL, REACH, Advice, advise, with_gradient
from ..analysis.advice_files import base_name, config_text, hooks_without_clipping, summary
from ..analysis.against_auto import advise_auto, compare, describe_effect, explain
from ..analysis.gradient_stats import GradientStats, load_stats, save_stats
from ..analysis.record import AdviceError, record_gradients
from ..analysis.replay import Effect, Replay, replay_config
from ..clipping import ClipConfigError
from ..engine.configs import LaunchError, clip_hooks, load_config, optim_wrappers
from .arguments import add_cfg_options, add_config, add_json, new_parser, only_json

DESCRIPTION = """\
Suggest clipping for a config, from a short run without clipping.

Recommends Auto, which has no threshold, and prints what it would have done to the recorded steps.
Then prints a ready config for value, norm, AGC and ZClip with the reason for each threshold, and
how it compares with Auto. The config's own clip_grad is compared, too. Writes to --out: a config
file for each rule (auto.py, norm.py, ...), the distributions as distributions.png, everything as
advice.json, and the statistics as stats.npz, from which advice for another learning rate takes no
training.

The statistics are recorded at the learning rate of the config, or at a lower one if the run does
not survive it without clipping. The advice is for the learning rate of --lr."""
TITLES = {
    'auto': 'Auto, recommended',
    'value': 'Value',
    'norm': 'Norm',
    'agc': 'AGC',
    'zclip': 'ZClip',
}
#: What the share of what was clipped is a share of.
OF = {
    'auto': 'units',
    'value': 'elements',
    'norm': 'steps',
    'agc': 'units',
    'zclip': 'steps, by max_norm',
}


def build_parser(prog: str = 'gclip advise') -> argparse.ArgumentParser:
    """The parser."""
    parser = new_parser(
        prog,
        DESCRIPTION,
        'gclip advise configs/bccd/faster-rcnn_tiny_bccd.py --lr 0.16',
        'gclip advise configs/bccd/faster-rcnn_tiny_bccd.py --lr 1.0 \\\n'
        '      --reuse work_dirs/advise/faster-rcnn_tiny_bccd/stats.npz',
    )
    add_config(parser)
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
    add_json(parser)
    add_cfg_options(parser)
    return parser


def parse_args(argv: list[str] | None = None, prog: str = 'gclip advise') -> argparse.Namespace:
    """Parse and check the arguments."""
    parser = build_parser(prog)
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


def gather(args: argparse.Namespace, cfg: Config) -> tuple[GradientStats, dict[str, Any]]:
    """The statistics, and how they were recorded.

    Raises:
        AdviceError: no statistics can be read or recorded.
    """
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


def report(
    advices: list[Advice], texts: dict[str, str], how: dict[str, Any], own: dict[str, Any] | None
) -> str:
    """The printed report: a section for each rule, and one for the config's own clipping."""
    parts = []
    for failed in how.get('rates_that_blew_up', []):
        parts.append(f'Without clipping lr {failed["lr"]:g} blew up: {failed["why"]}.')
    if 'record_lr' in how:
        parts.append(f'Recorded {how["steps"]} steps at lr {how["record_lr"]:g}.')
    for advice in advices:
        share = f'{advice.clipped:.2%} of the recorded {OF[advice.name]} would have been clipped'
        parts += _section(f'{TITLES[advice.name]}: {share}', texts[advice.name].rstrip())
        if advice.name == 'auto' and own is not None:
            keys = ', '.join(f'{key}={value!r}' for key, value in own['clip_grad'].items())
            parts += _section(f"The config's own: {keys}", textwrap.fill(own['text'], 98))
    return '\n'.join(parts)


def _section(title: str, text: str) -> list[str]:
    return ['', title, '-' * len(title), text]


def own_clipping(cfg: Config, replay: Replay, auto: Effect) -> dict[str, Any] | None:
    """The config's own ``clip_grad``, compared with Auto; None if it does not clip.

    Raises:
        ClipConfigError: it is not valid.
    """
    ((_, wrapper),) = optim_wrappers(cfg)
    found = [wrapper.get('clip_grad'), *(hook.get('clip_grad') for hook in clip_hooks(cfg))]
    clip_grad = next((dict(item) for item in found if item), None)
    if clip_grad is None:
        return None
    effect = replay.effect(clip_grad)
    if effect is None:
        text = 'What it does cannot be computed from the recorded steps.'
        return {'clip_grad': clip_grad, 'effect': None, 'against_auto': None, 'text': text}
    comparison = compare(effect, auto)
    text = f'It would have acted in {effect.steps:.0%} of the recorded steps. {explain(comparison)}'
    return {
        'clip_grad': clip_grad,
        'effect': describe_effect(effect),
        'against_auto': None if comparison is None else comparison._asdict(),
        'text': text,
    }


def main(argv: list[str] | None = None, prog: str = 'gclip advise') -> int:
    """Run the command; returns the exit code."""
    args = parse_args(argv, prog)
    try:
        with only_json(args.json) as result:
            result.update(run(args))
    except (AdviceError, LaunchError, ClipConfigError, ValueError) as error:
        print(f'{prog}: error: {error}', file=sys.stderr)
        return 1
    return 0


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Record, advise, print and write; returns the content of ``advice.json`` and the paths.

    Raises:
        AdviceError, LaunchError, ClipConfigError, ValueError: no advice can be given.
    """
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
    momentum = optimizer.get('momentum', 0.0)
    thresholds = advise(stats, lr, momentum, proportional=kind in PROPORTIONAL, reach=args.reach)
    replay = replay_config(cfg, lr, with_gradient(stats))
    auto = replay.effect({'type': 'Auto'})
    assert auto is not None
    effects = {'auto': auto}
    comparisons: dict[str, Any] = {'auto': None}
    advices = [advise_auto(auto, lr, momentum)]
    for advice in thresholds:
        effect = replay.effect(advice.clip_grad)
        assert effect is not None
        effects[advice.name] = effect
        comparison = compare(effect, auto)
        comparisons[advice.name] = None if comparison is None else comparison._asdict()
        advices.append(advice._replace(reason=f'{advice.reason} {explain(comparison)}'))
    own = own_clipping(cfg, replay, auto)
    out = args.out or Path('work_dirs') / 'advise' / Path(cfg.filename).stem
    out.mkdir(parents=True, exist_ok=True)
    base = base_name(args.config, out)
    hooks = hooks_without_clipping(cfg)
    texts = {a.name: config_text(a, wrapper, lr, base, hooks) for a in advices}
    print(report(advices, texts, how, own))
    for name, text in texts.items():
        (out / f'{name}.py').write_text(text)
    save_stats(stats, out / 'stats.npz')
    content = {
        'config': args.config,
        'lr': lr,
        'optimizer': kind,
        'momentum': momentum,
        'reach': args.reach,
        **how,
        'advice': [
            {
                **advice._asdict(),
                'effect': describe_effect(effects[advice.name]),
                'against_auto': comparisons[advice.name],
            }
            for advice in advices
        ],
        'own': own,
        **summary(stats),
    }
    (out / 'advice.json').write_text(json.dumps(content, indent=2) + '\n')
    # Matplotlib is imported late, because it is slow and an error above makes it useless.
    from ..analysis.pictures.advice import save_distributions

    title = f'{args.config} at lr {lr:g}'
    save_distributions(stats, advices, auto, out / 'distributions.png', title)
    files = [*(f'{name}.py' for name in texts), 'advice.json', 'distributions.png', 'stats.npz']
    print(f'\nSaved to {out}: {", ".join(files)}')
    return {**content, 'out': out, 'files': files}
