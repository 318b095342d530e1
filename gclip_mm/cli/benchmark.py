"""``gclip benchmark``: time every clipping rule and its peers side by side, in one process."""

from __future__ import annotations

import argparse
import csv
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from .arguments import new_parser

DESCRIPTION = """\
Time every clipping rule and its peers side by side, in one process, on one set of parameters.

Every ratio is of two steps that ran in turn, round by round; the absolute times depend on the
machine. The gradients are restored before every run. Rules with state are warmed up on gradients
of half the size, so that they clip.

Columns of the table (and their names in the CSV):

  clip+step ms  clip_and_step_ms       one step, clipping included
  clip ms       clip_alone_ms          what clipping adds to the same optimizer's step without it
  /read once    clip_alone_over_...    that, over reading the gradients' memory once
  /stock        over_mmengine_norm     clip+step, over the step of MMEngine's OptimWrapper with
                                       clip_grad=dict(max_norm=...) and the default SGD
  /torch        over_torch_norm        clip+step, over clip_grad_norm_ and a fused SGD step
  /ours         over_our_norm          clip+step, over NormClip and a fused SGD step
  reads         host_reads             how often the host waits for a value of the device
  mem %         peak_extra_...         peak of the memory that a step allocates, as a share of the
                                       memory of the gradients
                kernel_launches        on a GPU, optimizer included
                over_fused_step        clip+step, over the same optimizer's step without clipping

The first row reads as much memory as the gradients take, and nothing else. The row 'buffers' is a
fused SGD step and the copy of the model's buffers that nonfinite='skip' makes in every step; that
copy is part of the times of the rules."""
DEFAULT = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'


def print_table(rows: list[dict[str, Any]], about: dict[str, Any]) -> None:
    """Print a line for each rule and peer, then the promised ratios."""
    print(
        f'{about["parameters"]}: {about["tensors"]} tensors, {about["weights"] / 1e6:.1f}M weights,'
        f' {about["gradients"]} gradients, {about["device"]}, {about["threads"]} threads,'
        f' {about["rounds"]} rounds'
    )
    head = (
        '',
        'clip+step ms',
        'clip ms',
        '/read once',
        '/stock',
        '/torch',
        '/ours',
        'reads',
        'mem %',
    )
    print(f'{head[0]:36}' + ''.join(f'{title:>13}' for title in head[1:]))
    for row in rows:
        print(
            f'{row["name"]:36}{row["clip_and_step_ms"]:13.2f}{row["clip_alone_ms"]:13.2f}'
            f'{row["clip_alone_over_read_once"]:13.2f}{row["over_mmengine_norm"]:13.3f}'
            f'{row["over_torch_norm"]:13.3f}{row["over_our_norm"]:13.3f}{row["host_reads"]:13d}'
            f'{row["peak_extra_percent_of_gradients"]:13.2f}'
        )
    for target in about['targets']:
        line = f'{target["what"]} / {target["over"]}, {target["of"]}: {target["measured"]:.3f}'
        if target['at_most'] is not None:
            met = 'met' if target['measured'] <= target['at_most'] else 'MISSED'
            line += f', promised at most {target["at_most"]:.2f}: {met}'
        print(line)


def build_parser(prog: str = 'gclip benchmark') -> argparse.ArgumentParser:
    """The parser."""
    parser = new_parser(
        prog,
        DESCRIPTION,
        'gclip benchmark --out results/benchmark/faster-rcnn_r50_cpu',
        'gclip benchmark --tensors 10000 --numel 16 --only NormClip AGC',
    )
    parser.add_argument('--config', default=DEFAULT, help=f'whose parameters (default: {DEFAULT})')
    parser.add_argument('--tensors', type=int, help='instead of a config: this many tensors')
    parser.add_argument('--numel', type=int, default=16, help='of this many elements each')
    parser.add_argument(
        '--gradients',
        choices=['random', 'model'],
        default='random',
        help='standard normal numbers, or those of one backward pass of the model over a drawn '
        'image (default: random)',
    )
    parser.add_argument('--only', nargs='+', help='rules and peers to time (default: all)')
    parser.add_argument('--rounds', type=int, default=20)
    parser.add_argument('--threads', type=int, help='CPU threads (default: what torch takes)')
    parser.add_argument('--device', default='cpu', help='cpu or cuda')
    parser.add_argument('--out', type=Path, help='write OUT.csv and OUT.json')
    return parser


def parse_args(argv: list[str] | None = None, prog: str = 'gclip benchmark') -> argparse.Namespace:
    """Parse and check the arguments."""
    parser = build_parser(prog)
    args = parser.parse_args(argv)
    if args.tensors and args.gradients == 'model':
        parser.error('--gradients model needs a model: leave --tensors out')
    return args


def main(argv: list[str] | None = None, prog: str = 'gclip benchmark') -> int:
    """Run the command; returns the exit code."""
    args = parse_args(argv, prog)
    # PyTorch is imported late, so that --help is fast.
    import torch

    from ..analysis.benchmark.table import measure_all
    from ..engine.configs import LaunchError

    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        rows, about = measure_all(
            args.config,
            args.tensors,
            args.numel,
            args.gradients,
            args.only,
            args.rounds,
            args.device,
        )
    except (LaunchError, ValueError) as error:
        print(f'{prog}: error: {error}', file=sys.stderr)
        return 1
    words = sys.argv[1:] if argv is None else argv
    script = ['python', 'tools/benchmark/benchmark_clipping.py']
    about['command'] = shlex.join([*(script if prog.endswith('.py') else prog.split()), *words])
    print_table(rows, about)
    if args.out:
        print('written: {}, {}'.format(*save(rows, about, args.out)))
    return 0


def save(rows: list[dict[str, Any]], about: dict[str, Any], out: Path) -> tuple[Path, Path]:
    """Write ``OUT.csv`` and ``OUT.json``."""
    out.parent.mkdir(parents=True, exist_ok=True)
    table, everything = out.with_suffix('.csv'), out.with_suffix('.json')
    with table.open('w', newline='') as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    everything.write_text(json.dumps({'about': about, 'rows': rows}, indent=2) + '\n')
    return table, everything
