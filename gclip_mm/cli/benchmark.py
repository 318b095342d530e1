"""Time every clipping rule and its peers side by side, in one process, on one set of parameters.

Example::

    python tools/benchmark/benchmark_clipping.py --out results/benchmark/faster-rcnn_r50_cpu
    python tools/benchmark/benchmark_clipping.py --tensors 10000 --numel 16 --out ...

Every ratio is of two things that were run in turn, round by round; the absolute times depend on the
machine. The gradients are restored before every run. Rules with a memory are warmed up on gradients
of half the size, so that they are past their first steps and clip.

Columns of the table (and their names in the CSV):

  clip+step ms  clip_and_step_ms       one step, clipping included
  clip ms       clip_alone_ms          what clipping adds to the same optimizer's step without it
  /read once    clip_alone_over_...    that, over reading the gradients' memory once
  /stock        over_mmengine_norm     clip+step, over the step of MMEngine's OptimWrapper with
                                       clip_grad=dict(max_norm=...) and the default SGD
  /torch        over_torch_norm        clip+step, over clip_grad_norm_ and a fused SGD step
  /ours         over_our_norm          clip+step, over NormClip and a fused SGD step
  reads         host_reads             how often the host waits for a value of the device
  mem %         peak_extra_...         most memory held within a step beyond what was there before,
                                       as a share of the gradients' own
                kernel_launches        on a GPU, optimizer included
                over_fused_step        clip+step, over the same optimizer's step without clipping

The first row reads as much memory as the gradients take, and nothing else.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import shlex
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch  # noqa: E402
from gradients import build_model, many_tensors, model_gradients, random_gradients  # noqa: E402
from measure import (  # noqa: E402
    host_reads,
    kernel_launches,
    peak_extra_bytes,
    ratio,
    read_once,
    time_in_turn,
)
from peers import LR, PEERS, VALUE, sgd  # noqa: E402
from torch import nn  # noqa: E402

import gclip_mm  # noqa: E402
from gclip_mm import CLIPPERS  # noqa: E402

DEFAULT = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
STOCK, TORCH, OURS = 'MMEngine OptimWrapper norm', 'torch clip_grad_norm_', 'NormClip'
SGD, ADAMW = 'step only (fused SGD)', 'step only (fused AdamW)'
#: Rules that refuse SGD, and are measured with AdamW.
WITH_ADAMW = ('GradientStabilizer',)
SETTINGS = {'ValueClip': dict(clip_value=VALUE)}


def rule_step(name: str, params: list[nn.Parameter], model: nn.Module) -> tuple[Any, Any]:
    """A rule with a fused SGD: the step function, and the handle that clips for it."""
    clip_grad = {'type': name, **SETTINGS.get(name, CLIPPERS.get(name).example)}
    if name in WITH_ADAMW:
        optimizer = torch.optim.AdamW(params, lr=LR, fused=True)
    else:
        optimizer = sgd(params, fused=True)
    handle = gclip_mm.attach(optimizer, clip_grad, model=model)
    rule = handle.engine.config.outer
    if rule.State is not None:
        grads = [p.grad for p in params]
        torch._foreach_mul_(grads, 0.5)
        # A few more than half a window of timed steps, for the rule that goes by a percentile.
        starts = [getattr(rule, key, 0) for key in ('warmup_steps', 'grace_steps')]
        for _ in range(max(*starts, 10) + 1):
            # No rule changes the gradients' sizes for good: the same ones come in every time.
            kept = [grad.clone() for grad in grads]
            optimizer.step()
            torch._foreach_copy_(grads, kept)
        torch._foreach_mul_(grads, 2.0)
    return optimizer.step, handle


def measure_all(args: argparse.Namespace) -> tuple[list[dict], dict]:
    device = torch.device(args.device)
    torch.manual_seed(0)
    model = many_tensors(args.tensors, args.numel) if args.tensors else build_model(args.config)
    model.to(device)
    params = [p for p in model.parameters() if p.requires_grad]
    if args.gradients == 'model':
        model_gradients(model, params)
    else:
        random_gradients(params)
    grads = [p.grad for p in params]
    master = [grad.clone() for grad in grads]
    wanted = args.only or [*PEERS, *CLIPPERS]
    unknown = [name for name in wanted if name not in PEERS and name not in CLIPPERS]
    if unknown:
        sys.exit(f'--only: unknown {unknown[0]!r}; known: {", ".join([*PEERS, *CLIPPERS])}')

    def prepare() -> None:
        for p, grad in zip(params, grads, strict=True):
            p.grad = grad
        torch._foreach_copy_(grads, master)

    prepare()
    steps = {'read once': read_once(grads)}
    handles = {}
    for name in wanted:
        if name in CLIPPERS:
            steps[name], handles[name] = rule_step(name, params, model)
        else:
            steps[name] = PEERS[name](params, model)
    needed = [SGD, STOCK, TORCH, OURS]
    if any(name in WITH_ADAMW for name in steps):
        needed.append(ADAMW)
    for base in needed:
        if base not in steps:
            steps[base] = (
                rule_step(base, params, model)[0]
                if base in CLIPPERS
                else PEERS[base](params, model)
            )
    print(f'timing {len(steps)} steps in turn, {args.rounds} rounds ...', file=sys.stderr)
    times = time_in_turn(steps, prepare, device, args.rounds)

    total_bytes = sum(grad.numel() * grad.element_size() for grad in grads)
    rows = []
    for name, step in steps.items():
        ours = name in CLIPPERS
        clip_alone = clip_alone_seconds(times, name)
        prepare()
        reads = host_reads(step)
        prepare()
        extra = peak_extra_bytes(step, device)
        prepare()
        rows.append(
            {
                'name': name,
                'kind': 'rule' if ours else ('limit' if name == 'read once' else 'peer'),
                'clip_and_step_ms': 1e3 * statistics.median(times[name]),
                'clip_alone_ms': 1e3 * clip_alone,
                'clip_alone_over_read_once': clip_alone / statistics.median(times['read once']),
                'over_fused_step': ratio(times, name, without_clipping(name)),
                'over_mmengine_norm': ratio(times, name, STOCK),
                'over_torch_norm': ratio(times, name, TORCH),
                'over_our_norm': ratio(times, name, OURS),
                'host_reads': reads,
                'kernel_launches': kernel_launches(step, device),
                'peak_extra_percent_of_gradients': 100 * extra / total_bytes,
            }
        )
    about = {
        'parameters': f'{args.tensors} tensors of {args.numel}' if args.tensors else args.config,
        'tensors': len(params),
        'weights': sum(p.numel() for p in params),
        'gradients': args.gradients,
        'device': torch.cuda.get_device_name(device) if device.type == 'cuda' else 'cpu',
        'threads': torch.get_num_threads(),
        'rounds': args.rounds,
        'torch': torch.__version__,
        'python': platform.python_version(),
        'command': shlex.join(['python', 'tools/benchmark/benchmark_clipping.py', *sys.argv[1:]]),
        'targets': targets(times),
    }
    return rows, about


def without_clipping(name: str) -> str:
    """The step of the same optimizer that clips nothing."""
    return ADAMW if name in WITH_ADAMW or name == ADAMW else SGD


def clip_alone_seconds(times: dict[str, list[float]], name: str) -> float:
    """What clipping adds to the optimizer's step, in seconds: the median round by round."""
    base = times[without_clipping(name)]
    return statistics.median(a - b for a, b in zip(times[name], base, strict=True))


def targets(times: dict[str, list[float]]) -> list[dict]:
    """The ratios that the package promises, where both sides were measured.

    Of clip+step; of clipping alone against ``clip_grad_value_``, where the step by itself takes
    more than the promised share of both.
    """
    wanted = [
        (OURS, STOCK, 0.40, 'clip+step'),
        (OURS, TORCH, 0.85, 'clip+step'),
        ('AGC', 'AGC as timm', 0.28, 'clip+step'),
        ('ValueClip', 'torch clip_grad_value_', 0.60, 'clip alone'),
        ('ValueClip', 'torch clip_grad_value_', None, 'clip+step'),
        ('AutoClip', OURS, 1.15, 'clip+step'),
        ('ZClip', OURS, 1.15, 'clip+step'),
        ('AdaGC', OURS, 1.5, 'clip+step'),
        ('ParamNormClip', OURS, 1.5, 'clip+step'),
        (OURS, 'torch _foreach_norm only', 1.5, 'clip+step'),
    ]
    found = []
    for a, b, limit, part in wanted:
        if a in times and b in times:
            if part == 'clip alone':
                measured = clip_alone_seconds(times, a) / clip_alone_seconds(times, b)
            else:
                measured = ratio(times, a, b)
            found.append(dict(what=a, over=b, of=part, at_most=limit, measured=round(measured, 3)))
    return found


def print_table(rows: list[dict], about: dict) -> None:
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
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
    args = parser.parse_args()
    if args.tensors and args.gradients == 'model':
        parser.error('--gradients model needs a model: leave --tensors out')
    if args.threads:
        torch.set_num_threads(args.threads)
    rows, about = measure_all(args)
    print_table(rows, about)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with args.out.with_suffix('.csv').open('w', newline='') as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        args.out.with_suffix('.json').write_text(
            json.dumps({'about': about, 'rows': rows}, indent=2) + '\n'
        )
        print(f'written: {args.out.with_suffix(".csv")}, {args.out.with_suffix(".json")}')


if __name__ == '__main__':
    main()
